"""Piecewise swish: x·σ(x) left of 0, x·σ(2x) right of it."""

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl

from ._math import FAR_RIGHT, FLOOR, NEAR, at_least, at_most, branch_table, divide, exp, from_output
from ._twin import Twin
from .silu import bend_of, slope_of


@triton.jit
def parts(x, half: tl.constexpr):
    """x clamped where its exponential is 0, z = max(x, 2x), and exp(z)."""
    x = at_least(x, FLOOR)
    z = at_least(x + x, x)
    return x, z, exp(at_most(z, NEAR), half)


@triton.jit
def f(x, c, half: tl.constexpr):
    x, _z, e = parts(x, half)
    return x * divide(e, e + 1.0)


@triton.jit
def df(x, c, half: tl.constexpr):
    _x, z, e = parts(x, half)
    return slope_of(z, e)


@triton.jit
def d2f(x, c, half: tl.constexpr):
    x = at_most(at_least(x, FLOOR), FAR_RIGHT / 2)
    z = at_least(x + x, x)
    bend = bend_of(z, exp(z, half))
    return tl.where(x > 0, bend + bend, bend)


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    return from_output(at_least(y + y, y), right, table)


twin = Twin(f, df, d2f, df_y, table=partial(branch_table, "silu"))
