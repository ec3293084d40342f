"""The operators of the APTx layer, their plain-torch forms and their autograd.

    mishkit::aptx_layer(input, alpha, beta, gamma, delta) -> output
    mishkit::aptx_layer_backward(grad, input, alpha, beta, gamma, with_input)
        -> (grad_input, grad_alpha, grad_beta, grad_gamma)
    mishkit::aptx_layer_traced(input, alpha, beta, gamma, delta) -> output

Shapes: input (batch, in), parameters (out, in), delta (out,) or (0,) for none, output and grad
(batch, out); all of the same dtype. Results are contiguous; grad_input is empty, (0,), unless
with_input. The first two operators are not differentiable by themselves; `Layer` and `TracedLayer`
add autograd. The third is `TracedLayer` as an operator (see `ops.functions.define_traced`), for
inputs with any leading dimensions.

Neither the kernels nor the plain forms hold batch × out × in elements. The exception is derivatives
beyond the first, for which autograd differentiates the plain forms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._mode import are_transforms_active
from ..activation import DTYPES
from ..backends import triton
from .functions import define_traced, operator, register_fake

SCHEMAS = {
    "aptx_layer": "(Tensor input, Tensor alpha, Tensor beta, Tensor gamma, Tensor delta) -> Tensor",
    "aptx_layer_backward": "(Tensor grad, Tensor input, Tensor alpha, Tensor beta, Tensor gamma, "
    "bool with_input) -> (Tensor, Tensor, Tensor, Tensor)",
}

BLOCK = {"cpu": 1 << 18}
"""How many elements of batch × out × in the plain forms hold at a time, by device type: as many as
fit a core's cache.
"""
OTHER_BLOCK = 1 << 24
"""The same for devices where launching an operation costs more than the memory."""


# ---- plain torch -------------------------------------------------------------------------------


def expression(input: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, delta: Tensor) -> Tensor:
    """The layer in one expression, for compilers; input (..., in)."""
    x, alpha, beta, gamma, delta = map(_wide, (input.unsqueeze(-2), alpha, beta, gamma, delta))
    y = ((alpha + torch.tanh(beta * x)) * gamma * x).sum(-1)
    y = y + delta if delta.numel() else y
    return y if y.dtype == input.dtype else y.to(input.dtype)


def forward(input: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, delta: Tensor) -> Tensor:
    """The layer, a block of outputs at a time; differentiable by autograd to any order."""
    parts = [
        expression(input, alpha[block], beta[block], gamma[block], delta[block])
        for block in _blocks(input, gamma)
    ]
    return torch.cat(parts, -1)


def backward(
    grad: Tensor, input: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, with_input: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients, a block of outputs at a time; differentiable by autograd."""
    x = _wide(input).unsqueeze(1)
    grad_input = x.new_zeros(input.shape if with_input else 0)
    gradients: list[tuple[Tensor, Tensor, Tensor]] = []
    for block in _blocks(input, gamma):
        g, a, b, c = map(
            _wide, (grad[:, block].unsqueeze(2), alpha[block], beta[block], gamma[block])
        )
        t = torch.tanh(b * x)
        bend = x * (1 - t * t)
        rise = a + t
        gx = g * x
        gradients.append((c * gx.sum(0), c * (gx * bend).sum(0), (gx * rise).sum(0)))
        if with_input:
            grad_input = grad_input + (g * (c * (rise + b * bend))).sum(1)
    parameters = (torch.cat(parts).to(gamma.dtype) for parts in zip(*gradients, strict=True))
    return grad_input.to(input.dtype), *parameters  # type: ignore[return-value]


def _wide(x: Tensor) -> Tensor:
    if x.dtype not in DTYPES:
        raise RuntimeError(
            "mishkit.aptx_layer: expected tensors of float32, float64, bfloat16 or float16, "
            f"got {str(x.dtype).removeprefix('torch.')}"
        )
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)


def _blocks(input: Tensor, gamma: Tensor) -> Iterator[slice]:
    """Slices of the outputs, at least one output each."""
    most = BLOCK.get(input.device.type, OTHER_BLOCK)
    size = max(1, most // max(1, input.numel()))
    for begin in range(0, max(1, gamma.shape[0]), size):
        yield slice(begin, begin + size)


# ---- operators ---------------------------------------------------------------------------------


def _fake(input: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, delta: Tensor) -> Tensor:
    return input.new_empty(input.shape[0], gamma.shape[0])


def _fake_backward(
    grad: Tensor, input: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, with_input: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_input = input.new_empty(input.shape if with_input else 0)
    return grad_input, *(gamma.new_empty(gamma.shape) for _ in range(3))  # type: ignore[return-value]


_library = torch.library.Library("mishkit", "FRAGMENT")
for _name, _plain, _shapes in (
    ("aptx_layer", forward, _fake),
    ("aptx_layer_backward", backward, _fake_backward),
):
    _library.define(_name + SCHEMAS[_name], tags=torch.Tag.pt2_compliant_tag)
    _library.impl(_name, _plain, "CompositeExplicitAutograd")
    register_fake(_library, _name, _shapes)


# On GPUs. The module is imported at the first call because it imports Triton. The plain forms
# compute dtypes that it doesn't support.


def _gpu_layer(input: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, delta: Tensor) -> Tensor:
    if input.dtype not in triton.DTYPES:
        return forward(input, alpha, beta, gamma, delta)
    from ..backends import _triton_neuron

    return _triton_neuron.layer(input, alpha, beta, gamma, delta)


def _gpu_layer_backward(
    grad: Tensor, input: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, with_input: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if input.dtype not in triton.DTYPES:
        return backward(grad, input, alpha, beta, gamma, with_input)
    from ..backends import _triton_neuron

    return _triton_neuron.layer_backward(grad, input, alpha, beta, gamma, with_input)


def _register_gpu(key: str) -> None:
    _library.impl("aptx_layer", _gpu_layer, key)
    _library.impl("aptx_layer_backward", _gpu_layer_backward, key)


if triton.available():
    _register_gpu("CUDA")  # this is also ROCm's name

_layer = operator("aptx_layer")
_layer_backward = operator("aptx_layer_backward")
# The compiler needs the operators with their wrappers.
_traced_layer = torch.ops.mishkit.aptx_layer.default
_traced_layer_backward = torch.ops.mishkit.aptx_layer_backward.default


# ---- autograd ----------------------------------------------------------------------------------


def call(input: Tensor, *parameters: Tensor) -> Tensor:
    """The operator for inputs with any leading dimensions; without autograd."""
    return _call(_layer, input, *parameters)


def _call(operator: Callable[..., Tensor], input: Tensor, *parameters: Tensor) -> Tensor:
    if input.dim() == 2:
        return operator(input, *parameters)
    return operator(_rows(input), *parameters).view(*input.shape[:-1], parameters[0].shape[0])


def _gradients(
    ctx: Any, grad: Tensor, formula: Callable[..., tuple[Tensor, ...]]
) -> tuple[Tensor | None, ...]:
    """In the order and shapes of the arguments; `formula` is the operator or its plain form."""
    input, alpha, beta, gamma = ctx.saved_tensors
    needed = ctx.needs_input_grad
    grad = _rows(grad)
    to_input, *to_parameters = formula(grad, _rows(input), alpha, beta, gamma, needed[0])
    return (
        to_input.view(input.shape) if needed[0] else None,
        *(g if w else None for g, w in zip(to_parameters, needed[1:4], strict=True)),
        grad.sum(0) if needed[4] else None,
    )


def _rows(x: Tensor) -> Tensor:
    """x as a matrix."""
    return x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])


class Layer(Function):
    """apply(input, alpha, beta, gamma, delta) for eager code; keeps its inputs."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[:4])
        return _call(_layer, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # For a second derivative or a batch of gradients, torch differentiates the plain form.
        by_torch = torch.is_grad_enabled() or are_transforms_active()
        return _gradients(ctx, grad, backward if by_torch else _layer_backward)


class TracedLayer(Function):
    """The same for torch.compile, whose graphs then contain the two operators."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors[:4])
        return _call(_traced_layer, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_torch = torch.is_grad_enabled()  # a second derivative
        return _gradients(ctx, grad, backward if by_torch else _traced_layer_backward)


define_traced(_library, "aptx_layer_traced" + SCHEMAS["aptx_layer"], TracedLayer)
traced_layer = torch.ops.mishkit.aptx_layer_traced.default
