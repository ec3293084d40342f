"""Hard Mish: x·min(k, max(0, x + 3))/k."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .._branch_fit import leading
from .._inverse import centring
from ._math import at_least, at_most
from ._twin import Twin


@triton.jit
def f(x, c, half: tl.constexpr):
    x = at_least(x, -3.0)
    return x * at_most((x + 3.0) * c[0], 1.0)


@triton.jit
def df(x, c, half: tl.constexpr):
    # At −3 the sum is 0, which is the gradient there, and it is NaN for NaN.
    x = at_least(x, -3.0)
    inside = tl.where(x > -3.0, (x * 2.0 + 3.0) * c[0], x + 3.0)
    return tl.where(x > c[1], 1.0, inside)


@triton.jit
def d2f(x, c, half: tl.constexpr):
    x = at_least(x, -3.0)
    inside = tl.where(x > -3.0, c[0] + c[0], x + 3.0)
    return tl.where(x > c[1], 0.0, inside)


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    """±2·√((y − y_min)/k) on the quadratic part."""
    size = tl.sqrt(at_least((y + c[0]) + c[1], c[2]) * c[3])
    return tl.where(right, tl.where(y > c[4], 1.0, size), tl.where(y < 0, -size, y))


def numbers(k: float) -> tuple[float, ...]:
    """The slope of the weight, and the x at which the weight becomes 1."""
    return 1 / k, k - 3


def output_numbers(saved: torch.dtype, k: float) -> tuple[float, ...]:
    """The depth in two parts, the lower bound for y − y_min, 4/k, and y at the joint."""
    kinked = k < 1.5
    shift, least = (0.0, 0.0) if kinked else centring(9 / (4 * k), saved)
    depth = 9 / (4 * k) + shift
    return depth, depth - leading(depth, 24), least, 4 / k, -math.inf if kinked else k - 3


twin = Twin(f, df, d2f, df_y, numbers=numbers, output_numbers=output_numbers)
