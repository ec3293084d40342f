"""Exact GELU: x·Φ(x), where Φ is the normal distribution function."""

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl

from ._math import NORMAL_END, at_most, branch_table, from_output, normal
from ._twin import Twin


@triton.jit
def parts(x, half: tl.constexpr):
    """|x|, clamped where the tail is 0, with exp(−x²/2) and Φ(−|x|)."""
    size = at_most(tl.abs(x), NORMAL_END)
    e, tail = normal(size, half)
    return size, e, tail


@triton.jit
def f(x, c, half: tl.constexpr):
    size, _e, tail = parts(x, half)
    # x·Φ(x) is x − x·Φ(−x) on the right and −|x|·Φ(−|x|) on the left.
    correction = size * tail
    # Triton's unary minus subtracts from 0, which makes −0 positive.
    return tl.where(x < 0, correction * -1.0, x - correction)


@triton.jit
def df(x, c, half: tl.constexpr):
    size, e, tail = parts(x, half)
    rise = size * (e * 0.3989422804014327) - tail
    return tl.where(x < 0, -rise, rise + 1.0)


@triton.jit
def d2f(x, c, half: tl.constexpr):
    size, e, _tail = parts(x, half)
    return e * 0.3989422804014327 * (2.0 - size * size)


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    return from_output(y, right, table)


twin = Twin(f, df, d2f, df_y, table=partial(branch_table, "gelu"))
