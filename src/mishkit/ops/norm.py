"""The RMS norm in one pass over memory: the operators and their autograd.

    mishkit::rms_norm(input, weight, epsilon, offset) -> output
    mishkit::rms_norm_backward(grad, input, weight, epsilon, offset) -> (grad_input, grad_weight)

The output is x·r·(weight + offset) with r = 1/√(mean(x²) + epsilon) of each row; `offset` is 0 or
1. The rows are the last dimension, and as long as the weight, which has the input's dtype. 16-bit
types are computed in float32 and rounded once. Both tensors are contiguous, and so are the results.
They do not depend on the number of threads.

`lean` puts these in the place of RMS norms that a model computes step by step (surgery/norms.py).
The operators are not differentiable by themselves; `RmsNorm` adds autograd.

Source: Zhang and Sennrich 2019, Root Mean Square Layer Normalization (arXiv:1910.07467).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ..backends.torch import wide
from ..memory import check_version
from .functions import differentiable_gradients, fast_apply, operator, register_fake

SCHEMAS = {
    "rms_norm": "(Tensor input, Tensor weight, float epsilon, float offset) -> Tensor",
    "rms_norm_backward": (
        "(Tensor grad, Tensor input, Tensor weight, float epsilon, float offset)"
        " -> (Tensor, Tensor)"
    ),
}


# ---- plain torch ---------------------------------------------------------------------------------


def differentiable(x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
    """The norm by operations that can be differentiated to any order. They keep more than x."""
    rows = wide(x)
    return (rows * _reciprocal_root(rows, epsilon) * (wide(weight) + offset)).to(x.dtype)


def _reciprocal_root(x: Tensor, epsilon: float) -> Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon)


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, epsilon: float, offset: float
) -> tuple[Tensor, Tensor]:
    outer, rows = wide(grad), wide(x)
    r = _reciprocal_root(rows, epsilon)
    weighted = outer * (wide(weight) + offset)
    to_x = weighted * r - rows * (r**3 * (weighted * rows).mean(-1, keepdim=True))
    to_weight = (outer * rows * r).sum(tuple(range(x.dim() - 1)))
    return to_x.to(x.dtype), to_weight.to(weight.dtype)


# ---- operators -----------------------------------------------------------------------------------

_library = torch.library.Library("mishkit", "FRAGMENT")
for _name, _body, _fake in (
    ("rms_norm", differentiable, lambda x, *_: torch.empty_like(x)),
    (
        "rms_norm_backward",
        _gradients,
        lambda grad, x, weight, *_: (torch.empty_like(x), torch.empty_like(weight)),
    ),
):
    _library.define(_name + SCHEMAS[_name], tags=torch.Tag.pt2_compliant_tag)
    _library.impl(_name, _body, "CompositeExplicitAutograd")
    register_fake(_library, _name, _fake)

forward = operator("rms_norm")
_backward = operator("rms_norm_backward")


class RmsNorm(Function):
    """apply(x, weight, epsilon, offset); keeps x and the weight, and is differentiable again.

    The weight is no saved tensor, since each of these costs 20 µs within `mishkit.recompute`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.arguments, ctx.version = (weight, epsilon, offset), weight._version
        result: Tensor = forward(x, weight, epsilon, offset)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, *numbers = given(ctx)
        if not torch.is_grad_enabled():
            return *_backward(grad, x, weight, *numbers), None, None
        gradients = differentiable_gradients(
            lambda *both: differentiable(*both, *numbers), grad, (x, weight), ctx.needs_input_grad
        )
        return *gradients, None, None


def given(node: Any) -> tuple[Tensor, Tensor, float, float]:
    """What `RmsNorm` was applied to; raises RuntimeError if the weight was modified in place."""
    (x,) = node.saved_tensors
    weight, epsilon, offset = node.arguments
    check_version(weight, node.version)
    return x, weight, epsilon, offset


apply = fast_apply(RmsNorm)
