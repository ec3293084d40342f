"""The operators in plain torch: for every device and dtype, without kernels.

They are used where nothing faster is registered, and they are what torch.compile fuses. The
functions here have the names of the operators, with `forward` for the bare name. Products start
with the derivative, so that results have the layout of the input and not of the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..activation import DTYPES, Activation, Formulas
from ..functions._branch_fit import leading


def forward(a: Formulas, x: Tensor, *parameters: float) -> Tensor:
    """f(x)."""
    return _as(a.f(_wide(a, x), *parameters), x)


def check_out(name: str, x: Tensor, out: Tensor) -> None:
    """Reject a tensor for results that isn't like x, as the CPU kernels do."""
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
        raise ValueError(
            f"mishkit.{name}: out must be {x.dtype} of shape {tuple(x.shape)} on {x.device}, "
            f"not {out.dtype} of shape {tuple(out.shape)} on {out.device}"
        )


def forward_out(a: Activation, x: Tensor, out: Tensor, *parameters: float) -> None:
    """f(x), written into `out`."""
    check_out(a.name, x, out)
    out.copy_(a.f(_wide(a, x), *parameters))


def backward(a: Formulas, grad: Tensor, x: Tensor, *parameters: float) -> Tensor:
    """grad·f'(x)."""
    return _as(_passed(a, parameters, a.df(_wide(a, x), *parameters), _wide(a, grad)), x)


def double_backward(
    a: Formulas, grad_grad: Tensor, grad: Tensor, x: Tensor, *parameters: float
) -> tuple[Tensor, Tensor]:
    """The gradients of `backward` for grad and x: grad_grad·f'(x), grad_grad·grad·f''(x)."""
    wide, gg = _wide(a, x), _wide(a, grad_grad)
    to_grad = _passed(a, parameters, a.df(wide, *parameters), gg)
    to_x = _passed(a, parameters, a.d2f(wide, *parameters), gg * _wide(a, grad))
    return _as(to_grad, x), _as(to_x, x)


def forward_packed(a: Activation, x: Tensor, *parameters: float) -> tuple[Tensor, Tensor]:
    """f(x) and the packed side (empty for a monotone function)."""
    return forward_kept(a, x, *parameters), _side(a, x, parameters)


def forward_kept(a: Activation, x: Tensor, *parameters: float) -> Tensor:
    """f(x), computed so that it also gives the gradient.

    Near the minimum, one float32 output stands for a whole range of gradients, and every rounding
    on the way to it would widen that range. Computed as the parabola it is there, f is rounded
    once.
    """
    y = forward(a, x, *parameters)
    minimum = a.minimum_at(*parameters) if x.dtype == torch.float32 else None
    if minimum is None:
        return y
    turn, bottom = leading(minimum.turn, 24), leading(minimum.y, 24)
    root = ((x - turn) - (minimum.turn - turn)) * minimum.bend
    square = root * root
    return torch.where(square < minimum.reach, bottom + (square + (minimum.y - bottom)), y)


def forward_packed_out(a: Activation, x: Tensor, out: Tensor, *parameters: float) -> Tensor:
    """f(x), written into `out` (which may be x), and the packed side."""
    side = _side(a, x, parameters)
    out.copy_(forward_kept(a, x, *parameters))
    return side


def backward_packed(
    a: Activation, grad: Tensor, y: Tensor, side: Tensor, *parameters: float
) -> Tensor:
    """grad·f'(x), with x known by y and its packed side."""
    right = y if a.turn is None else from_memory_order(unpack(side, y.numel()), y)
    return backward_sided(a, grad, y, right, *parameters)


def backward_sided(
    a: Activation, grad: Tensor, y: Tensor, right: Tensor, *parameters: float
) -> Tensor:
    """grad·f'(x), with x known by y and its side (any tensor for a monotone function)."""
    slope = a.df_y(_wide(a, y), right, y.dtype, *parameters)
    return _as(_passed(a, parameters, slope, _wide(a, grad)), y)


def _passed(a: Formulas, parameters: Sequence[Any], slope: Tensor, grad: Tensor) -> Tensor:
    """The gradient that passes, given the slope."""
    product = slope * grad
    is_dead = a.is_dead if isinstance(a.is_dead, bool) else a.is_dead(*parameters)
    return torch.where(slope == 0, slope, product) if is_dead else product


def right_of_turn(a: Activation, x: Tensor, *parameters: float) -> Tensor:
    """The side of each element, for a function that has a turn."""
    turn = a.turn_at(*parameters)
    assert turn is not None
    # Compared in the wide dtype: rounded to 16 bits, the turn could equal an input.
    return _wide(a, x) > turn


def gate(
    a: Activation, g: Tensor, u: Tensor, limit: float, offset: float, *parameters: float
) -> Tensor:
    """f(min(g, limit))·(clamp(u, −limit, limit) + offset), differentiable by autograd."""
    return gated(lambda x: a.f(x, *parameters), g, u, limit, offset)


def gated(
    f: Callable[[Tensor], Tensor],
    g: Tensor,
    u: Tensor,
    limit: float = math.inf,
    offset: float = 0.0,
) -> Tensor:
    """The gate of a function of tensors that computes in float32 or float64."""
    return _as(f(_at_most(wide(g), limit)) * _factor(u, limit, offset), g)


def _at_most(x: Tensor, limit: float) -> Tensor:
    return x if limit == math.inf else x.clamp(max=limit)


def _factor(u: Tensor, limit: float, offset: float) -> Tensor:
    u = wide(u)
    if limit != math.inf:
        u = u.clamp(-limit, limit)
    return u + offset if offset else u


def gate_out(
    a: Activation,
    g: Tensor,
    u: Tensor,
    out: Tensor,
    limit: float,
    offset: float,
    *parameters: float,
) -> None:
    """`gate`, written into `out`."""
    out.copy_(gate(a, g, u, limit, offset, *parameters))


def gate_backward(
    a: Activation,
    grad: Tensor,
    g: Tensor,
    u: Tensor,
    limit: float,
    offset: float,
    *parameters: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of `gate` for g and u."""
    x, outer = _at_most(wide(g), limit), wide(grad)
    to_u = a.f(x, *parameters) * outer
    to_g = _passed(a, parameters, a.df(x, *parameters), _factor(u, limit, offset) * outer)
    if limit != math.inf:
        to_g = torch.where(g <= limit, to_g, 0.0)
        to_u = torch.where(u.abs() <= limit, to_u, 0.0)
    return _as(to_g, g), torch.empty_like(u).copy_(to_u)


def gate_backward_out(
    a: Activation,
    grad: Tensor,
    g: Tensor,
    u: Tensor,
    grad_g: Tensor,
    grad_u: Tensor,
    *numbers: float,
) -> None:
    """`gate_backward`, written into `grad_g` and `grad_u`."""
    to_g, to_u = gate_backward(a, grad, g, u, *numbers)
    grad_g.copy_(to_g)
    grad_u.copy_(to_u)


def trained(a: Activation, x: Tensor, parameters: Tensor) -> Tensor:
    """f(x) with parameters in a tensor: a row per parameter; one column, or one per channel.

    Differentiable by autograd with respect to both, to any order.
    """
    return _as(a.f(_wide(a, x), *by_channel(parameters, x)), x)


def trained_backward(
    a: Activation, grad: Tensor, x: Tensor, parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of `trained` for x and the parameters."""
    assert a.dp is not None
    wide, values, g = _wide(a, x), by_channel(parameters, x), _wide(a, grad)
    dims = [dim for dim in range(x.dim()) if dim != 1 or parameters.shape[1] == 1]
    sums = [(d * g).sum(dims).reshape(parameters.shape[1]) for d in a.dp(wide, *values)]
    return _as(a.df(wide, *values) * g, x), torch.stack(sums)


def by_channel(parameters: Tensor, x: Tensor) -> list[Tensor]:
    """The parameters, from one row each, in shapes that broadcast with x."""
    if parameters.shape[1] == 1:
        return list(parameters[:, 0].unbind())
    shape = [-1 if dim == 1 else 1 for dim in range(x.dim())]
    return [row.view(shape) for row in parameters]


def pack(bits: Tensor) -> Tensor:
    """Eight bits to a byte, the first in the lowest bit; the last byte is padded with zeros."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.numel() % 8))
    return (padded.view(-1, 8) << _places(bits)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, count: int) -> Tensor:
    """The first `count` bits of `pack`'s bytes, as bools."""
    return ((packed.unsqueeze(1) >> _places(packed)) & 1).view(-1)[:count].to(torch.bool)


def in_memory_order(x: Tensor) -> Tensor:
    """x's elements as a 1-D tensor, in the order of its strides."""
    return x.permute(_order(x)).reshape(-1)


def from_memory_order(row: Tensor, like: Tensor) -> Tensor:
    """`row`, given in the memory order of `like`, in the shape of `like`."""
    order = _order(like)
    inverse = [order.index(dim) for dim in range(like.dim())]
    return row.view([like.shape[dim] for dim in order]).permute(inverse)


def _order(x: Tensor) -> list[int]:
    strides = x.stride()
    return sorted(range(x.dim()), key=lambda dim: (-strides[dim], dim))


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


def _side(a: Activation, x: Tensor, parameters: tuple[float, ...]) -> Tensor:
    if a.turn is None:
        return x.new_empty(0, dtype=torch.uint8)
    return pack(right_of_turn(a, in_memory_order(torch.empty_like(x).copy_(x)), *parameters))


def _wide(a: Formulas, x: Tensor) -> Tensor:
    if x.dtype not in DTYPES:
        raise RuntimeError(
            f"mishkit.{a.name}: expected a tensor of float32, float64, bfloat16 or float16, "
            f"got {str(x.dtype).removeprefix('torch.')}"
        )
    return wide(x)


def wide(x: Tensor) -> Tensor:
    """In the type that formulas compute in."""
    # Converting a tensor to the type that it has takes ten times as long as looking at the type.
    return x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill their memory, each its own place, in any order."""
    # The operator takes five times as long as the method.
    return x.is_contiguous() or bool(torch.ops.aten.is_non_overlapping_and_dense.default(x))


def _as(result: Tensor, x: Tensor) -> Tensor:
    return result.to(x.dtype)
