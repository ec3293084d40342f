"""H-Mish: (x/2)·min(2, max(0, x + 2))."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .._inverse import centring
from ._math import at_least, at_most
from ._twin import Twin


@triton.jit
def f(x, c, half: tl.constexpr):
    x = at_least(x, -2.0)
    return x * 0.5 * at_most(x + 2.0, 2.0)


@triton.jit
def df(x, c, half: tl.constexpr):
    # At −2 the sum is 0, which is the gradient there, and it is NaN for NaN.
    x = at_least(x, -2.0)
    return tl.where(x > -2.0, at_most(x, 0.0) + 1.0, x + 2.0)


@triton.jit
def d2f(x, c, half: tl.constexpr):
    x = at_least(x, -2.0)
    return tl.where(x > 0, 0.0, tl.where(x > -2.0, 1.0, x + 2.0))


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    """±√(2y + 1) on the quadratic part."""
    size = tl.sqrt(at_most(at_least((y + 0.5) + c[0], c[1]) * 2.0, 1.0))
    return tl.where(right, size, tl.where(y < 0, -size, y))


def output_numbers(saved: torch.dtype) -> tuple[float, ...]:
    return centring(0.5, saved)


twin = Twin(f, df, d2f, df_y, output_numbers=output_numbers)
