"""How figures are written, in the terminal and in the report alike."""

from __future__ import annotations

import math

NONE = "–"


def significant(value: float, digits: int = 3) -> str:
    """So many significant digits, no exponent; a dash for what is not a number."""
    if not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def with_std(mean: float, std: float, digits: int = 3) -> str:
    """mean ± std with the mean's decimals; without the std where there is only one value."""
    if not math.isfinite(mean):
        return NONE
    text = significant(mean, digits)
    decimals = len(text.partition(".")[2])
    return text if not math.isfinite(std) else f"{text} ± {std:,.{decimals}f}"


def between(low: float, high: float, digits: int = 3) -> str:
    """min–max."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return NONE
    return f"{significant(low, digits)}–{significant(high, digits)}"


def ratio(value: float) -> str:
    """×1.23"""
    return f"×{value:.2f}" if math.isfinite(value) else NONE
