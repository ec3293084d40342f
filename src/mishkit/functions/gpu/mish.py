"""Mish: x·tanh(ln(1 + eˣ)) = x·n/(n + 2) with e = eˣ, n = e(e + 2)."""

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl

from ._math import FLOOR, NEAR, at_least, at_most, branch_table, divide, exp, from_output
from ._twin import Twin


@triton.jit
def parts(x, half: tl.constexpr):
    """x clamped where its exponential is 0, then e and n."""
    x = at_least(x, FLOOR)
    e = exp(at_most(x, NEAR), half)
    return x, e, e * e + (e + e)


@triton.jit
def f(x, c, half: tl.constexpr):
    x, _e, n = parts(x, half)
    return x * divide(n, n + 2.0)


@triton.jit
def df(x, c, half: tl.constexpr):
    x, e, n = parts(x, half)
    r = divide(1.0, n + 2.0)
    growth = at_most(x, NEAR) * (e * e + e)
    return (n + (growth * r) * 4.0) * r


@triton.jit
def d2f(x, c, half: tl.constexpr):
    x, e, n = parts(x, half)
    r = divide(1.0, n + 2.0)
    s = divide(e, e + 1.0)
    bend = 2.0 + at_most(x, NEAR) * (1.0 - s * (n * r * 2.0 + 1.0))
    return (e * e + e) * 4.0 * r * r * bend


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    return from_output(y, right, table)


twin = Twin(f, df, d2f, df_y, table=partial(branch_table, "mish"))
