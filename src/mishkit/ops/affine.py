"""What follows a normalisation, recomputed in one pass over its input: the operators.

    mishkit::affine(input, scale, shift, f, f_0, ...) -> output
    mishkit::affine_backward(grad, input, scale, shift, f, f_0, ...) -> grad_input
    mishkit::layer_norm_again(input, mean, rstd, weight, bias) -> output

`affine` is f(scale·input + shift) with a scale and a shift per channel (C,), or per sample and
channel (N, C); the channels are dimension 1 of the input. `affine_backward` is the gradient with
respect to the input of f: grad·f'(scale·input + shift). f is a position in the table, followed by
numbers as in `mishkit.ops.blend`; in `affine` it may be −1, for scale·input + shift itself. This
is rounded to the input's dtype before f sees it, so the result has the bits of a normalisation
followed by the function.

`layer_norm_again` is ((input − mean)·rstd)·weight + bias with a mean and an rstd per row and a
weight and a bias per column, which together have as many elements as the last dimensions; its input
is contiguous.

The input may have any dtype of the library. All other numbers are dense and of float32, or of
float64 with an input of float64. Results have the strides of `torch.empty_like(input)`. The
operators are not differentiable: `mishkit.recompute` calls them in the backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends import torch as plain
from ..backends import triton
from ..backends.torch import wide as wide
from .blend import NUMBERS, TABLE
from .functions import operator, register_fake

_FUNCTION = ", int f" + "".join(f", float f_{i}" for i in range(NUMBERS))
NO_FUNCTION = (-1, *(0.0,) * NUMBERS)
"""In place of a function: scale·input + shift itself."""
_NUMBERS_OF_INPUT = "Tensor input, Tensor scale, Tensor shift"
SCHEMAS = {
    "affine": f"({_NUMBERS_OF_INPUT}{_FUNCTION}) -> Tensor",
    "affine_backward": f"(Tensor grad, {_NUMBERS_OF_INPUT}{_FUNCTION}) -> Tensor",
    "layer_norm_again": (
        "(Tensor input, Tensor mean, Tensor rstd, Tensor weight, Tensor bias) -> Tensor"
    ),
}


class Affine(NamedTuple):
    """A tensor that has not been computed: scale·input + shift."""

    input: Tensor
    scale: Tensor
    shift: Tensor


# ---- plain torch ---------------------------------------------------------------------------------


def _scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    shape = (*scale.shape, *(1,) * (x.dim() - 2))
    return torch.addcmul(shift.view(shape), wide(x), scale.view(shape)).to(x.dtype)


def _forward(x: Tensor, scale: Tensor, shift: Tensor, f: int, *numbers: float) -> Tensor:
    scaled = _scaled(x, scale, shift)
    if f < 0:
        return scaled
    a = TABLE[f]
    return plain.forward(a, scaled, *numbers[: len(a.parameters)])


def _backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, f: int, *numbers: float
) -> Tensor:
    a = TABLE[f]
    return plain.backward(a, grad, _scaled(x, scale, shift), *numbers[: len(a.parameters)])


def _layer_norm_again(
    x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    rows = wide(x).reshape(-1, weight.numel())
    normal = (rows - mean.view(-1, 1)) * rstd.view(-1, 1)
    result = torch.addcmul(bias.view(-1), normal, weight.view(-1))
    return result.view(x.shape).to(x.dtype)


# ---- operators -----------------------------------------------------------------------------------


def _on_gpu(name: str, *arguments: Any) -> Tensor:
    """The Triton version of the operators, for the dtypes that Triton supports."""
    if arguments[-1 - (name != "layer_norm_again") * (NUMBERS + 1)].dtype == torch.float64:
        return _BODIES[name](*arguments)
    if name == "layer_norm_again":
        return triton.layer_norm_again(*arguments)
    *tensors, f = arguments[:-NUMBERS]
    a = TABLE[f] if f >= 0 else None
    numbers = arguments[-NUMBERS:][: len(a.parameters)] if a else ()
    return getattr(triton, name)(a, *tensors, *numbers)


_library = torch.library.Library("mishkit", "FRAGMENT")
_BODIES: dict[str, Callable[..., Tensor]] = {
    "affine": _forward,
    "affine_backward": _backward,
    "layer_norm_again": _layer_norm_again,
}


def _like_input(name: str, *arguments: Any) -> Tensor:
    return torch.empty_like(arguments[name == "affine_backward"])


for _name, _body in _BODIES.items():
    _library.define(_name + SCHEMAS[_name], tags=torch.Tag.pt2_compliant_tag)
    _library.impl(_name, _body, "CompositeExplicitAutograd")
    if triton.available():
        _library.impl(_name, functools.partial(_on_gpu, _name), "CUDA")
    register_fake(_library, _name, functools.partial(_like_input, _name))

affine = operator("affine")
affine_backward = operator("affine_backward")
layer_norm_again = operator("layer_norm_again")
