"""Linear swish: 2x·σ(1.25x) left of 0, x right of it."""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl

from .. import linear_swish
from ._constants import constant
from ._math import (
    FLOOR,
    at_least,
    at_most,
    divide,
    exp_product,
    factor,
    from_scaled_output,
    scaled_numbers,
    scaled_table,
)
from ._twin import Twin
from .silu import bend_of, slope_of

BETA = constant(linear_swish.BETA)
SHARPNESS = constant(factor(linear_swish.BETA))


@triton.jit
def parts(x, half: tl.constexpr):
    """x clamped where its exponential is 0, then z = BETA·x and exp(z) for x left of 0."""
    x = at_least(x, FLOOR / BETA)
    left = at_most(x, 0.0)
    return x, left * BETA, exp_product(left, SHARPNESS[0], SHARPNESS[1], SHARPNESS[2], half)


@triton.jit
def f(x, c, half: tl.constexpr):
    x, _z, e = parts(x, half)
    sigma = divide(e, e + 1.0)
    # Right of 0 σ is exactly ½.
    return x * (sigma + sigma)


@triton.jit
def df(x, c, half: tl.constexpr):
    x, z, e = parts(x, half)
    slope = slope_of(z, e)
    return tl.where(x > 0, 1.0, slope + slope)


@triton.jit
def d2f(x, c, half: tl.constexpr):
    x, z, e = parts(x, half)
    return tl.where(x > 0, 0.0, bend_of(z, e) * (2 * BETA))


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    left = from_scaled_output(at_most(y, 0.0), right, c, table)
    return tl.where(right & (y >= 0), 1.0, left + left)


def output_numbers(saved: torch.dtype) -> tuple[float, ...]:
    return scaled_numbers("silu", linear_swish.BETA / 2, saved)


twin = Twin(
    f,
    df,
    d2f,
    df_y,
    output_numbers=output_numbers,
    table=partial(scaled_table, "silu"),
)
