"""Tanh form of GELU: x·σ(2u), u = √(2/π)·(x + 0.044715·x³)."""

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl

from .. import gelu_tanh
from .._branch_fit import leading
from ._constants import constant, value_of
from ._math import FLOOR, LOG2E, at_least, at_most, branch_table, divide, exp2_sum, from_output
from ._twin import Twin

SCALE, CUBIC = constant(gelu_tanh.SCALE), constant(gelu_tanh.CUBIC)
# w in powers of two: w·log₂ e = x·(LINEAR + WEIGHT·x²). LINEAR is split into two parts, and WEIGHT
# into its float32 value and the rest.
_linear = gelu_tanh.SCALE * value_of(LOG2E)
LINEAR_HIGH = constant(leading(_linear, 12))
LINEAR_LOW = constant(_linear - value_of(LINEAR_HIGH))
_weight = gelu_tanh.SCALE * gelu_tanh.CUBIC * value_of(LOG2E)
WEIGHT = constant(_weight)
WEIGHT_REST = constant(_weight - leading(_weight, 24))
NEAR, FAR = constant(7.5), constant(26.0)
"""Above NEAR, σ(w) rounds to 1; below −FAR, exp(w) is 0."""


@triton.jit
def parts(x, half: tl.constexpr):
    """x clamped on the far left, c = x clamped on the far right, exp(w(c)) and w'(c)."""
    x = at_least(x, -FAR)
    c = at_most(x, NEAR)
    square = c * c
    slope = square * (3 * SCALE * CUBIC) + SCALE
    bow = square * WEIGHT
    if half:
        return x, c, tl.exp2(c * (bow + (LINEAR_HIGH + LINEAR_LOW))), slope
    else:
        # w in two parts, because the exponential would magnify its rounding error up to 87 times.
        # The high part is short enough for the difference between the sum and it to be exact.
        total = bow + LINEAR_HIGH
        w = c * total
        total_low = (bow - (total - LINEAR_HIGH)) + tl.fma(square, WEIGHT, -bow)
        total_low = tl.fma(tl.fma(c, c, -square), WEIGHT, total_low)
        total_low += tl.fma(square, WEIGHT_REST, LINEAR_LOW)
        low = tl.fma(c, total_low, tl.fma(c, total, -w))
        return x, c, exp2_sum(at_least(w, FLOOR * LOG2E), low), slope


@triton.jit
def f(x, c, half: tl.constexpr):
    x, _within, e, _dw = parts(x, half)
    return x * divide(e, e + 1.0)


@triton.jit
def df(x, c, half: tl.constexpr):
    _x, within, e, dw = parts(x, half)
    r = divide(1.0, e + 1.0)
    sigma = e * r
    return sigma + sigma * (within * dw * r)


@triton.jit
def d2f(x, c, half: tl.constexpr):
    _x, within, e, dw = parts(x, half)
    r = divide(1.0, e + 1.0)
    sigma = e * r
    bend = dw * dw * (r - sigma) + within * (6 * SCALE * CUBIC)
    return sigma * r * (within * bend + dw * 2.0)


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    return from_output(y, right, table)


twin = Twin(f, df, d2f, df_y, table=partial(branch_table, "gelu_tanh"))
