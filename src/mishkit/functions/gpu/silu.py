"""SiLU, also called swish: x·σ(x)."""

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl

from ._math import (
    FAR_RIGHT,
    FLOOR,
    NEAR,
    NEARER,
    at_least,
    at_most,
    branch_table,
    divide,
    exp,
    from_output,
)
from ._twin import Twin


@triton.jit
def parts(x, half: tl.constexpr):
    """x clamped where its exponential is 0, and exp(min(x, NEAR))."""
    x = at_least(x, FLOOR)
    return x, exp(at_most(x, NEAR), half)


@triton.jit
def f(x, c, half: tl.constexpr):
    x, e = parts(x, half)
    return x * divide(e, e + 1.0)


@triton.jit
def slope_of(x, e):
    """f' from x and its exponential."""
    r = divide(1.0, e + 1.0)
    sigma = e * r
    return sigma + sigma * (at_most(x, NEARER) * r)


@triton.jit
def bend_of(x, e):
    """f'' from x and its exponential."""
    r = divide(1.0, e + 1.0)
    sigma = e * r
    return sigma * r * (2.0 + x * (r - sigma))


@triton.jit
def df(x, c, half: tl.constexpr):
    x, e = parts(x, half)
    return slope_of(x, e)


@triton.jit
def d2f(x, c, half: tl.constexpr):
    x = at_most(at_least(x, FLOOR), FAR_RIGHT)
    return bend_of(x, exp(x, half))


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    return from_output(y, right, table)


twin = Twin(f, df, d2f, df_y, table=partial(branch_table, "silu"))
