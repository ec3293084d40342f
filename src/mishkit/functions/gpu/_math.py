"""Elementary functions in Triton, for blocks of float32.

The hardware's exp2, reciprocal and square root each cost as much as four products and are accurate
to one or two ULP. Its minimum and maximum drop NaNs unless told otherwise, and Triton would take a
constant below 1.2e-38 for a float64.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from .._branch_fit import leading
from .._df_y_tables import MINIMA, TABLES
from .._inverse import centring
from ._constants import INTERPRETED, constant, value_of
from ._tables import (
    LOG1P_RATIO,
    LOG1P_RATIO_HALF,
    MILLS_OVER,
    MILLS_OVER_HALF,
    MILLS_UNDER,
    MILLS_UNDER_HALF,
)

LOG2E = constant(1.4426950408889634)
LN2_HIGH, LN2_LOW = constant(0.693145751953125), constant(1.4286068203094172e-06)
"""ln 2 in two parts. The product of the first and a float32's exponent is exact."""
ROUNDER = constant(12582912.0)
"""1.5·2²³: adding it to a float32 rounds that to an integer."""

FLOOR = constant(-104.0)
"""Below this exp is 0. (Below −87.34, where results are subnormal, GPUs already return 0.)"""
NEAR = constant(19.40812110900879)
"""28·ln 2. Above this, 1/(1 + exp(−x)) rounds to 1. At this point exp is a power of two, so its
reciprocal is exact and the quotient is exactly 1.
"""
NEARER = constant(15.9)
"""Beyond this, NEARER·exp(−x) can replace x·exp(−x) beside 1; at NEAR it no longer counts."""
FAR_RIGHT = constant(80.0)
"""Here x·exp(−x) is effectively 0, and exp(x) is still finite."""
EXPM1_SERIES = constant((1.0, 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040))
"""(eˣ − 1)/x for |x| ≤ 0.35: error 2e-8."""
NORMAL_END = constant(14.46)
"""From here on the tail of the normal distribution is 0."""


@triton.jit
def at_least(x, low):
    """max(x, low), and NaN for NaN."""
    return tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_most(x, high):
    """min(x, high), and NaN for NaN."""
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def divide(a, b):
    """a/b for |b| below 2¹²⁶; 2 ULP."""
    # Triton's own division is twice as accurate and costs six more instructions.
    if INTERPRETED:
        return a / b
    else:
        return libdevice.fast_dividef(a, b)


@triton.jit
def polynomial(x, coefficients: tl.constexpr):
    """c[0] + c[1]·x + c[2]·x² + …"""
    last: tl.constexpr = len(coefficients) - 1
    p = tl.fma(x, coefficients[last], coefficients[last - 1])
    for i in tl.static_range(last - 1):
        p = tl.fma(p, x, coefficients[last - 2 - i])
    return p


@triton.jit
def exp_reduced(k, r):
    """exp(k·ln 2 + r) for an integer k."""
    return tl.exp2(r * LOG2E) * tl.exp2(k)


@triton.jit
def exp(x, half: tl.constexpr):
    """eˣ for FLOOR ≤ x ≤ 88."""
    if half:
        # Rounding the product is magnified to |x|·2⁻²⁴.
        return tl.exp2(x * LOG2E)
    else:
        k = (x * LOG2E + ROUNDER) - ROUNDER
        return exp_reduced(k, tl.fma(k, -LN2_LOW, tl.fma(k, -LN2_HIGH, x)))


@triton.jit
def exp_sum(x, low, half: tl.constexpr):
    """exp(x + low), where `low` extends x beyond float32's digits. Not read if `half`."""
    if half:
        return tl.exp2(x * LOG2E)
    else:
        k = (x * LOG2E + ROUNDER) - ROUNDER
        return exp_reduced(k, tl.fma(k, -LN2_LOW, tl.fma(k, -LN2_HIGH, x)) + low)


@triton.jit
def exp2_sum(x, low):
    """2^(x + low), where `low` extends x beyond float32's digits."""
    k = (x + ROUNDER) - ROUNDER
    return tl.exp2((x - k) + low) * tl.exp2(k)


@triton.jit
def exp_product(x, high, binary, ln2_low, half: tl.constexpr):
    """exp(x·factor) without rounding the product; takes the numbers from `factor`."""
    if half:
        return tl.exp2(x * binary)
    else:
        k = tl.fma(x, binary, ROUNDER) - ROUNDER
        return exp_reduced(k, tl.fma(k, -ln2_low, tl.fma(x, high, -(k * LN2_HIGH))))


def factor(value: float) -> tuple[float, float, float]:
    """A factor for `exp_product`: the factor, its product with log₂ e, and a low part of ln 2. The
    low part also corrects for rounding the factor to float32, since k is nearly proportional to the
    product.
    """
    error = value - leading(value, 24)
    log2e, ln2_low = value_of(LOG2E), value_of(LN2_LOW)
    return value, value * log2e, ln2_low - (error / value / log2e if value else 0)


@triton.jit
def expm1(x, half: tl.constexpr):
    """eˣ − 1 for FLOOR ≤ x ≤ 88; relative error 4e-7."""
    return tl.where(tl.abs(x) < 0.35, x * polynomial(x, EXPM1_SERIES), exp(x, half) - 1.0)


@triton.jit
def log1p(a, half: tl.constexpr):
    """ln(1 + a) for 0 ≤ a ≤ 1."""
    if half:
        return a * polynomial(a, LOG1P_RATIO_HALF)
    else:
        return a * polynomial(a, LOG1P_RATIO)


@triton.jit
def normal(t, half: tl.constexpr):
    """exp(−t²/2) and Φ(−t), for 0 ≤ t ≤ NORMAL_END."""
    if half:
        e = tl.exp2(t * t * (-0.5 * LOG2E))
        return e, e * divide(polynomial(t, MILLS_OVER_HALF), polynomial(t, MILLS_UNDER_HALF))
    else:
        halved = t * -0.5
        square = halved * t
        # The rounding error of the square would be magnified 90 times.
        e = exp_sum(square, tl.fma(halved, t, -square), half)
        return e, e * divide(polynomial(t, MILLS_OVER), polynomial(t, MILLS_UNDER))


# ---- the derivative from the output --------------------------------------------------------------


# A table is one flat row of numbers: the ends of the tail and of two pieces, then y_max, y_min_hi,
# y_min_lo, least and end of the `BranchFit`. Groups of four follow, one number per piece: the
# centres (0 for none) and the coefficients, starting at degree 0.
CENTERS, ROWS = constant(8), constant(12)


@triton.jit
def lookup(second, third, table: tl.constexpr, row: tl.constexpr):
    """Of the four numbers at `row`, the one for each element's piece (the tail is separate)."""
    return tl.where(third, table[row + 3], tl.where(second, table[row + 2], table[row + 1]))


@triton.jit
def from_table(y, above, right, table: tl.constexpr):
    """f' from an output that exceeds the minimum by `above`."""
    tail = (y > table[0]) & ~right
    second = (y > table[1]) & right
    third = (y > table[2]) & right
    root = tl.sqrt(tl.where(tail, -y, above))
    t = tl.where(right, root, -root)
    centered = t
    if table[CENTERS + 3] != 0:
        centered -= lookup(second, third, table, CENTERS)
    # The tail's polynomial is evaluated separately: selects and products use different units.
    last: tl.constexpr = len(table) - 4
    p = lookup(second, third, table, last)
    q = t * table[last] + table[last - 4]
    for i in tl.static_range((last - ROWS) // 4):
        p = tl.fma(p, centered, lookup(second, third, table, last - 4 - 4 * i))
    for i in tl.static_range((last - ROWS) // 4 - 1):
        q = tl.fma(q, t, table[last - 8 - 4 * i])
    return tl.where(tail, q, p)


@triton.jit
def from_output(y, right, table: tl.constexpr):
    """f' from an output of the function that the table was made for."""
    above = at_most(y, table[3]) + table[4]
    if table[5] != 0:
        above += table[5]
    return from_table(y, at_least(above, table[6]), right, table)


@triton.jit
def from_scaled_output(y, right, c, table: tl.constexpr):
    """f' where scale·y is an output of the table's function; c begins with `scaled_numbers`."""
    y = at_most(y, c[0])
    scaled = y * c[1]
    above = tl.fma(y, c[2], tl.fma(y, c[1], c[3]))
    if table[5] != 0:
        above += c[5]
    return from_table(scaled, at_most(at_least(above, c[4]), table[7]), right, table)


def branch_table(name: str, saved: torch.dtype) -> tuple[float, ...]:
    """The table of `_df_y_tables` in the layout that `from_table` reads."""
    fit = TABLES[name][str(saved).removeprefix("torch.")]
    rows: Any = fit.coefficients
    centers: Any = fit.centers
    # A select costs three instructions, so selecting centres is worth it only for float32's digits.
    if saved != torch.float32:
        columns = zip(*rows, strict=True)
        rows = zip(*map(_about_zero, centers, columns), strict=True)
        centers = (0.0, 0.0, 0.0, 0.0)
    return (
        *(fit.y_tail, *fit.breaks, fit.y_max, fit.y_min_hi, fit.y_min_lo, fit.least, fit.end),
        *(number for row in (centers, *rows) for number in row),
    )


def _about_zero(center: float, coefficients: tuple[float, ...]) -> list[float]:
    """Σ cₖ·(t − center)ᵏ in powers of t."""
    result = [0.0] * len(coefficients)
    for coefficient in reversed(coefficients):
        by_t = [0.0, *result[:-1]]
        result = [b - center * r for b, r in zip(by_t, result, strict=True)]
        result[0] += coefficient
    return result


def scaled_table(name: str, saved: torch.dtype) -> tuple[float, ...]:
    """The table for scaled outputs. bfloat16 may round them more finely than the function's own
    outputs, which its table is made for.
    """
    return branch_table(name, torch.float32 if saved == torch.float32 else torch.float16)


def scaled_numbers(name: str, scale: float, saved: torch.dtype) -> tuple[float, ...]:
    """The numbers that `from_scaled_output` expects at the start of c."""
    fit = TABLES[name]["float32" if saved == torch.float32 else "float16"]
    # These outputs round differently from those that the table was centred for.
    shift, least = (scale * value for value in centring(-MINIMA[name].y / scale, saved))
    depth = shift - MINIMA[name].y
    # An output beyond the table, so that inf·low doesn't become NaN.
    most = 2 * fit.y_max / scale
    return most, scale, scale - leading(scale, 24), depth, least, depth - leading(depth, 24)
