"""f(g)·u, a gate, for any function of the table: the operators and their autograd.

    mishkit::gate(g, u, f, f_0, ..., limit, offset) -> output
    mishkit::gate_out(g, u, out!, f, f_0, ..., limit, offset) -> ()
    mishkit::gate_backward(grad, g, u, f, f_0, ..., limit, offset) -> (grad_g, grad_u)
    mishkit::gate_backward_out(grad, g, u, grad_g!, grad_u!, f, f_0, ..., limit, offset) -> ()

The output is f(min(g, limit))·(clamp(u, −limit, limit) + offset); `limit` is inf where there is
none. f is a position in the table, followed by numbers as in `mishkit.ops.blend`. All tensors have
one shape and one dtype, and any strides: halves of one tensor are read, and written, where they
lie. 16-bit types are computed in float32 and rounded once. Results have the strides of
`torch.empty_like`: the output those for g, and each gradient those for its tensor.

The operators are not differentiable by themselves; `Gate`, `Packed` and `Trained` add autograd.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..activation import Activation
from ..backends import torch as plain
from ..backends import triton
from ..functions import ACTIVATIONS
from .blend import NUMBERS as _PARAMETERS
from .blend import TABLE
from .functions import RULES, differentiable_gradients, fast_apply, operator, register_fake

_FUNCTION = (
    ", int f"
    + "".join(f", float f_{i}" for i in range(_PARAMETERS))
    + ", float limit, float offset"
)
SCHEMAS = {
    "gate": f"(Tensor g, Tensor u{_FUNCTION}) -> Tensor",
    "gate_out": f"(Tensor g, Tensor u, Tensor(a!) out{_FUNCTION}) -> ()",
    "gate_backward": f"(Tensor grad, Tensor g, Tensor u{_FUNCTION}) -> (Tensor, Tensor)",
    "gate_backward_out": (
        f"(Tensor grad, Tensor g, Tensor u, Tensor(a!) grad_g, Tensor(b!) grad_u{_FUNCTION}) -> ()"
    ),
}
NUMBERS = 1 + _PARAMETERS + 2
"""How many numbers follow the tensors: the function, its parameters, the limit and the offset."""
Numbers = tuple[Any, ...]
_NO_GRADIENTS = (None,) * NUMBERS


def split(numbers: Numbers) -> tuple[Activation, tuple[float, ...], float, float]:
    """The function, its parameters, the limit and the offset."""
    a = TABLE[int(numbers[0])]
    limit, offset = numbers[-2:]
    return a, numbers[1 : 1 + len(a.parameters)], limit, offset


# ---- plain torch ---------------------------------------------------------------------------------


def _in_torch(name: str, *arguments: Any) -> Any:
    tensors, numbers = arguments[:-NUMBERS], arguments[-NUMBERS:]
    a, parameters, limit, offset = split(numbers)
    return getattr(plain, name)(a, *tensors, limit, offset, *parameters)


def differentiable(g: Tensor, u: Tensor, *numbers: Any) -> Tensor:
    """The output, by operations that can be differentiated to any order and in any mode. They keep
    more than g and u.
    """
    a, parameters, limit, offset = split(numbers)

    def f(x: Tensor) -> Tensor:
        result: Tensor = RULES[a.name].saving_input.apply(x, *parameters)
        return result

    return plain.gated(f, g, u, limit, offset)


# ---- operators -----------------------------------------------------------------------------------


def _on_gpu(name: str, *arguments: Any) -> Any:
    """The Triton version of the operators, for the dtypes that Triton supports."""
    if arguments[0].dtype not in triton.DTYPES:
        return _in_torch(name, *arguments)
    tensors, numbers = arguments[:-NUMBERS], arguments[-NUMBERS:]
    a, parameters, limit, offset = split(numbers)
    return getattr(triton, name)(a, *tensors, limit, offset, *parameters)


_FAKES: dict[str, Callable[..., Any]] = {
    "gate": lambda g, u, *_: torch.empty_like(g),
    "gate_out": lambda *_: None,
    "gate_backward": lambda grad, g, u, *_: (torch.empty_like(g), torch.empty_like(u)),
    "gate_backward_out": lambda *_: None,
}
_library = torch.library.Library("mishkit", "FRAGMENT")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(_name, functools.partial(_in_torch, _name), "CompositeExplicitAutograd")
    if triton.available():
        _library.impl(_name, functools.partial(_on_gpu, _name), "CUDA")
    register_fake(_library, _name, _FAKES[_name])

forward = operator("gate")
forward_out = operator("gate_out")
_backward = operator("gate_backward")
_backward_out = operator("gate_backward_out")


# ---- autograd ------------------------------------------------------------------------------------


class Gate(Function):
    """apply(g, u, *numbers); keeps g and u, and is differentiable to any order."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, u: Tensor, *numbers: Any) -> Tensor:
        ctx.save_for_backward(g, u)
        ctx.numbers = numbers
        result: Tensor = forward(g, u, *numbers)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        g, u = ctx.saved_tensors
        if torch.is_grad_enabled():
            gradients = differentiable_gradients(
                lambda g, u: differentiable(g, u, *ctx.numbers), grad, (g, u), ctx.needs_input_grad
            )
        else:
            gradients = _backward(grad, g, u, *ctx.numbers)
        return *gradients, *_NO_GRADIENTS


def parts(x: Tensor, dim: int, gate: str) -> tuple[Tensor, Tensor]:
    """The gate and what it multiplies, as views of one tensor that has both in dimension `dim`."""
    if gate in ("first", "second"):
        one, other = x.chunk(2, dim)
    else:
        dim %= x.dim()
        one, other = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
    return (one, other) if gate in ("first", "even") else (other, one)


class Packed(Function):
    """apply(x, dim, gate, *numbers) for `parts` of x; keeps x, and writes the gradients of both
    parts into one tensor.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, gate: str, *numbers: Any) -> Tensor:
        ctx.save_for_backward(x)
        ctx.place, ctx.numbers = (dim, gate), numbers
        result: Tensor = forward(*parts(x, dim, gate), *numbers)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            (gradient,) = differentiable_gradients(
                lambda x: differentiable(*parts(x, *ctx.place), *ctx.numbers), grad, (x,), (True,)
            )
        else:
            gradient = torch.empty_like(x)
            both = parts(x, *ctx.place)
            _backward_out(grad, *both, *parts(gradient, *ctx.place), *ctx.numbers)
        return gradient, None, None, *_NO_GRADIENTS


class Trained(Function):
    """apply(g, u, parameters, name) with parameters that are trained; keeps these three tensors."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, u: Tensor, parameters: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(g, u, parameters)
        ctx.function = name
        return with_trained(name, g, u, parameters)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        g, u, parameters = ctx.saved_tensors
        if torch.is_grad_enabled():
            output = functools.partial(trained_differentiable, ctx.function)
            gradients: Any = differentiable_gradients(
                output, grad, (g, u, parameters), ctx.needs_input_grad
            )
            return *gradients, None
        x, factor, outer = (plain.wide(t) for t in (g, u, grad))
        trained_backward: Any = operator(ctx.function + "_trained_backward")
        to_g, to_parameters = trained_backward(outer * factor, x, parameters)
        to_u = operator(ctx.function + "_trained")(x, parameters) * outer
        return to_g.to(g.dtype), to_u.to(u.dtype), to_parameters, None


def with_trained(name: str, g: Tensor, u: Tensor, parameters: Tensor) -> Tensor:
    """The output with parameters in a tensor, as in `mishkit.ops.functions`."""
    return plain.gated(lambda x: operator(name + "_trained")(x, parameters), g, u)


def trained_differentiable(
    name: str,
    g: Tensor,
    u: Tensor,
    parameters: Tensor,
    limit: float = math.inf,
    offset: float = 0.0,
) -> Tensor:
    """The same, by operations that can be differentiated to any order and in any mode."""
    a = ACTIVATIONS[name]
    return plain.gated(lambda x: plain.trained(a, x, parameters), g, u, limit, offset)


apply = fast_apply(Gate)
apply_packed = fast_apply(Packed)
apply_trained = fast_apply(Trained)
