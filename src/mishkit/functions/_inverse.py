"""f' from the rounded output and one bit, for functions without a closed-form inverse.

float32 and the 16-bit types use the fitted polynomials of `_df_y_tables`; float64 inverts f.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _branch_fit
from ._branch_fit import BranchFit, leading
from ._df_y_tables import MINIMA, TABLES

PRECISION = {torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}
"""Bits of the significand, for the dtypes whose outputs are decoded without a search."""
STEPS = 64
"""Safeguarded Newton steps: bisection alone would need about as many for float64's resolution."""


def df_from_output(
    name: str,
    f: Callable[[Tensor], Tensor],
    df: Callable[[Tensor], Tensor],
    y: Tensor,
    right: Tensor,
    saved: torch.dtype,
    scale: float = 1.0,
) -> Tensor:
    """f' at the x on the given side with f(x) = scale·y, where y was rounded to `saved`."""
    if y.dtype == torch.float64:
        return df(_invert(f, df, scale * y, right, MINIMA[name].turn))
    tables, dtype = TABLES[name], str(saved).removeprefix("torch.")
    if scale == 1:
        fit = tables[dtype]
        above = ((y.clamp_max(fit.y_max) + fit.y_min_hi) + fit.y_min_lo).clamp_min(fit.least)
        return _evaluate(fit, y, above, right)
    # In bfloat16, scaled outputs may be rounded more finely than the function's own, so they need
    # another table.
    fit = tables["float32" if saved == torch.float32 else "float16"]
    y = y.clamp_max(2 * fit.y_max / scale)  # inf can't be split into parts
    # These outputs round differently from those that the table was centred for.
    depth = -MINIMA[name].y
    shift, least = (scale * value for value in centring(depth / scale, saved))
    high = leading(depth + shift, 24)
    above = sum_of_product(y, scale, high=high, low=depth + shift - high)
    return _evaluate(fit, scale * y, above.clamp(least, fit.end), right)


def centring(depth: float, saved: torch.dtype) -> tuple[float, float]:
    """How to centre the gradients that share one output rounded to `saved`, where y_min is −depth:
    a shift of y − y_min, and the lower bound that the sum is raised to.
    """
    if saved not in PRECISION:
        return 0.0, 0.0
    return _branch_fit.centring(depth, PRECISION[saved])


def sum_of_product(y: Tensor, scale: float, *, high: float, low: float) -> Tensor:
    """scale·y + (high + low) without rounding the product. Rounding it would cost most of the
    digits of the sum when the product is near −high.
    """
    # Dekker's product: halves of 12 bits multiply exactly.
    scale_high = leading(scale, 12)
    scale_low = scale - scale_high
    y_high = 4097 * y
    y_high = y_high - (y_high - y)
    y_low = y - y_high
    product = y * leading(scale, 24)
    error = (y_high * scale_high - product) + (y_high * scale_low + y_low * scale_high)
    return (product + high) + (error + low + y_low * scale_low)


def _evaluate(fit: BranchFit, y: Tensor, above: Tensor, right: Tensor) -> Tensor:
    tail = ~right & (y > fit.y_tail)
    root = torch.where(tail, -y, above).sqrt()
    t = torch.where(right, root, -root)
    second, third = right & (y > fit.breaks[0]), right & (y > fit.breaks[1])

    def pick(row: tuple[float, float, float, float]) -> Tensor:
        by_break = torch.where(third, row[3], torch.where(second, row[2], row[1]))
        return torch.where(tail, row[0], by_break).to(y.dtype)

    t = t - pick(fit.centers)
    p = pick(fit.coefficients[-1])
    for row in reversed(fit.coefficients[:-1]):
        p = p * t + pick(row)
    return p


def _invert(
    f: Callable[[Tensor], Tensor],
    df: Callable[[Tensor], Tensor],
    y: Tensor,
    right: Tensor,
    turn: float,
) -> Tensor:
    """Newton's method between brackets that close by bisection where a step leaves them."""
    # Functions of this family are at least x − 1, and exceed 1 well before x = 3.
    low = torch.where(right, turn, torch.full_like(y, -800.0))
    high = torch.where(right, y.clamp_min(0) + 3, torch.full_like(y, turn))
    x = torch.where(right, y.clamp_min(turn + 1), turn - 1.0)
    for _ in range(STEPS):
        excess = f(x) - y
        below = (excess < 0) == right
        low, high = torch.where(below, x, low), torch.where(below, high, x)
        newton = x - excess / df(x)
        x = torch.where((newton > low) & (newton < high), newton, 0.5 * (low + high))
    return torch.where(y.isnan(), y, x)
