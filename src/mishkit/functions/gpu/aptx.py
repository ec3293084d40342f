"""APTx: (alpha + tanh(beta·x))·gamma·x."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from .. import aptx
from .._branch_fit import leading
from .._inverse import centring
from ..aptx import END, Bottom
from ._constants import constant, value_of
from ._math import (
    FLOOR,
    LN2_LOW,
    LOG2E,
    NEAR,
    NEARER,
    at_least,
    at_most,
    divide,
    exp_product,
    expm1,
    factor,
    from_scaled_output,
    scaled_numbers,
    scaled_table,
)
from ._twin import Twin

BALANCED = constant(aptx.BALANCED)
LARGEST_X = constant(3.4028234663852886e38)
LARGEST_SPLIT = constant(value_of(LARGEST_X) / 2.0**14)
"""If |beta| is nearly 0: a number that `exp_product` can still take."""
STEPS = constant(12)
"""Safeguarded Newton steps for float32; they converge in 4 to 8."""

# The `c` that the functions below take. For alpha < 0 they are written in 1/e (see
# csrc/functions/aptx.h), with side = −1. 0 to 2 are the `factor` of side·2·beta; 3, 4 the bounds
# that x is clamped to for the exponential; 5, 6 those it is clamped to for its own use, since inf·0
# would be a NaN; 7, 8 the limits of the weight of x, gamma·(alpha ± side), and 9 their difference.
# For `dp` and where alpha is near 0, also 10 gamma, 11 alpha + side, 12 alpha − side, 13 alpha,
# 14 the side.


def numbers(alpha: float, beta: float, gamma: float) -> tuple[float, ...]:
    side = -1.0 if alpha < 0 else 1.0
    sharpness = 2 * side * beta
    top, base = gamma * (alpha + side), gamma * (alpha - side)
    largest, high = value_of(LARGEST_X), value_of(LARGEST_SPLIT)
    low = -high
    if sharpness:
        a, b = value_of(FLOOR) / sharpness, value_of(NEAR) / sharpness
        low, high = max(low, min(a, b)), min(high, max(a, b))
    left, right = (top, base) if sharpness < 0 else (base, top)
    return (
        *(*factor(sharpness), low, high),
        *(-math.inf if left else -largest, math.inf if right else largest),
        *(top, base, 2 * side * gamma),
    )


def all_numbers(alpha: float, beta: float, gamma: float) -> tuple[float, ...]:
    side = -1.0 if alpha < 0 else 1.0
    extra = gamma, alpha + side, alpha - side, alpha, side
    return *numbers(alpha, beta, gamma), *extra


@triton.jit
def trained_numbers(p):
    """The same for blocks of parameters."""
    return block_numbers(p[0], p[1], p[2], tl.where(p[0] < 0, -1.0, 1.0))


@triton.jit
def block_numbers(alpha, beta, gamma, side):
    sharpness = (beta + beta) * side
    to, start = alpha + side, alpha - side
    top, base = gamma * to, gamma * start
    a, b = divide(FLOOR, sharpness), divide(NEAR, sharpness)
    low = at_least(tl.minimum(a, b), -LARGEST_SPLIT)
    high = at_most(tl.maximum(a, b), LARGEST_SPLIT)
    falling = sharpness < 0
    least = tl.where(tl.where(falling, top, base) == 0, -LARGEST_X, float("-inf"))
    most = tl.where(tl.where(falling, base, top) == 0, LARGEST_X, float("inf"))
    return (
        sharpness,
        sharpness * LOG2E,
        LN2_LOW,
        low,
        high,
        least,
        most,
        top,
        base,
        (gamma + gamma) * side,
        gamma,
        to,
        start,
        alpha,
        side,
    )


@triton.jit
def parts(x, c, half: tl.constexpr):
    """x clamped for its own use and for the exponential, and e = exp(2·beta·x)."""
    within = at_most(at_least(x, c[3]), c[4])
    x = at_most(at_least(x, c[5]), c[6])
    return x, within, exp_product(within, c[0], c[1], c[2], half)


@triton.jit
def f(x, c, half: tl.constexpr):
    x, _within, e = parts(x, c, half)
    return x * divide(tl.fma(e, c[7], c[8]), e + 1.0)


@triton.jit
def df(x, c, half: tl.constexpr):
    _x, within, e = parts(x, c, half)
    r = divide(1.0, e + 1.0)
    return tl.fma(e, c[7], c[8]) * r + c[9] * (at_most(within * c[0], NEARER) * r) * (e * r)


@triton.jit
def d2f(x, c, half: tl.constexpr):
    _x, within, e = parts(x, c, half)
    r = divide(1.0, e + 1.0)
    sigma = e * r
    bend = sigma * r * (2.0 + within * c[0] * (r - sigma))
    return c[9] * c[0] * tl.where(sigma == 1.0, 0.0, bend)


@triton.jit
def dp(x, c, half: tl.constexpr):
    """gamma·x, 4·gamma·x²·σ(z)·σ(−z) and x·(alpha + tanh u)."""
    x, within, e = parts(x, c, half)
    r = divide(1.0, e + 1.0)
    sigma = e * r
    to_beta = (c[10] * 4.0) * (within * sigma) * (within * r)
    return c[10] * x, tl.where(sigma == 1.0, 0.0, to_beta), x * (tl.fma(e, c[11], c[12]) * r)


# If alpha is near 0, the weight of x near x = 0 is small compared with its limits; there it is
# computed from tanh itself. Other lanes are left unchanged.


@triton.jit
def weight_of(within, e, r, c, half: tl.constexpr):
    """alpha + tanh(beta·x) from e and r = 1/(e + 1)."""
    less_one = expm1(within * c[0], half)
    near = c[13] + c[14] * divide(less_one, less_one + 2.0)
    return tl.where(tl.abs(c[13]) < BALANCED, near, tl.fma(e, c[11], c[12]) * r)


@triton.jit
def balanced_f(x, c, half: tl.constexpr):
    x, within, e = parts(x, c, half)
    return x * (c[10] * weight_of(within, e, divide(1.0, e + 1.0), c, half))


@triton.jit
def balanced_df(x, c, half: tl.constexpr):
    _x, within, e = parts(x, c, half)
    r = divide(1.0, e + 1.0)
    rise = (c[14] + c[14]) * (at_most(within * c[0], NEARER) * r) * (e * r)
    return c[10] * (weight_of(within, e, r, c, half) + rise)


@triton.jit
def balanced_dp(x, c, half: tl.constexpr):
    to_alpha, to_beta, _to_gamma = dp(x, c, half)
    x, within, e = parts(x, c, half)
    return to_alpha, to_beta, x * weight_of(within, e, divide(1.0, e + 1.0), c, half)


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    if table is None:
        return iterated(y, right, c)
    else:
        return from_scaled_output(y, right == (c[7] == 0), c, table) * c[6]


@triton.jit
def above_minimum(v, c):
    """g − g_min and g' at turn + v, without cancellation near the minimum; see `_slope` in
    `mishkit.functions.aptx`.
    """
    e = expm1(v + v, False)
    r = divide(1.0, c[3] * e + (e + 2.0))
    d = c[4] * e * r
    bend = c[4] * 4.0 * ((e + 1.0) * r) * r
    return v * d + c[2] * (d - c[4] * v), (c[2] + v) * bend + (d - c[2] * c[4])


@triton.jit
def iterated(y, right, c):
    """Like that `_slope`, with as many steps as float32 needs."""
    right = right == (c[13] == 0)
    far = tl.where(right, c[11], c[12])
    limit = tl.where(right, c[9], c[10])
    y = at_most(y, divide(limit, c[0]))
    above = tl.fma(y, c[1], tl.fma(y, c[0], c[5])) + c[6]
    above = at_most(at_least(above, c[16]), limit)
    root = tl.sqrt(above)
    # Start between the parabola at the minimum and the straight line far out.
    line = (above - c[5]) * tl.where(right, c[7], c[8])
    v = at_least(root * c[14], tl.where(right, line - c[2], line + c[2]))
    v = at_most(v, tl.abs(far))
    v = tl.where(right, v, -v)
    low = tl.zeros_like(v)
    for _ in range(STEPS):
        above, rise = above_minimum(v, c)
        size = tl.sqrt(at_least(above, 0.0))
        beyond = size > root
        low, far = tl.where(beyond, low, v), tl.where(beyond, v, far)
        newton = v - divide((size + size) * (size - root), rise)
        inside = (newton - low) * (newton - far) <= 0
        v = tl.where(inside, newton, (low + far) * 0.5)
    _above, rise = above_minimum(v, c)
    return tl.where(root > 0, rise, root) * c[15]


def output_numbers(
    saved: torch.dtype, alpha: float, beta: float, gamma: float
) -> tuple[float, ...]:
    scale, mirrored = beta / gamma, float(beta < 0)
    if alpha == 1:
        return *scaled_numbers("silu", scale, saved), 2 * gamma, mirrored
    g = Bottom(alpha)
    bottom = g.turn
    shift, least = (scale * value for value in centring(g.depth / scale, saved))
    depth = g.depth + shift
    far = END - bottom, -END - bottom
    limits = ((bottom + v) * (alpha + math.tanh(bottom + v)) + g.depth for v in far)
    return (
        *(scale, scale - leading(scale, 24), bottom, g.t, g.s, depth, depth - leading(depth, 24)),
        *(1 / (1 + alpha), 1 / (1 - alpha), *limits, *far, mirrored),
        *(1 / g.bend, gamma, least),
    )


def table(saved: torch.dtype, alpha: float, beta: float, gamma: float) -> Any:
    return scaled_table("silu", saved) if alpha == 1 else None


twin = Twin(
    f,
    df,
    d2f,
    df_y,
    numbers=numbers,
    output_numbers=output_numbers,
    table=table,
    trained_numbers=trained_numbers,
    dp=dp,
    varies=lambda alpha, beta, gamma: abs(alpha) < aptx.BALANCED,
    variant=Twin(
        balanced_f,
        balanced_df,
        d2f,
        df_y,
        numbers=all_numbers,
        output_numbers=output_numbers,
        table=table,
        trained_numbers=trained_numbers,
        dp=balanced_dp,
    ),
)
