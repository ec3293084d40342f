"""f' from the rounded output and one bit, for functions without a closed inverse.

float32 and the 16-bit types use the fitted polynomials of `_df_y_tables`; float64 inverts f.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._branch_fit import BranchFit
from ._df_y_tables import TABLES, TURNS

STEPS = 64
"""Safeguarded Newton steps: bisection alone would reach float64's resolution in about as many."""


def df_from_output(
    name: str,
    f: Callable[[Tensor], Tensor],
    df: Callable[[Tensor], Tensor],
    y: Tensor,
    right: Tensor,
    saved: torch.dtype,
) -> Tensor:
    """f' at the x on the given side with f(x) = y, y having been rounded to the dtype `saved`."""
    if y.dtype == torch.float64:
        return df(_invert(f, df, y, right, TURNS[name][0]))
    return _evaluate(TABLES[name][str(saved).removeprefix("torch.")], y, right)


def _evaluate(fit: BranchFit, y: Tensor, right: Tensor) -> Tensor:
    tail = ~right & (y > fit.y_tail)
    above = ((y.clamp_max(fit.y_max) + fit.y_min_hi) + fit.y_min_lo).clamp_min(fit.least)
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
    """Newton's method between brackets that close by bisection where it strays."""
    # A function of this family is at least x − 1 and rises past 1 well before x = 3.
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
