"""How numbers are written, both in the terminal and in the report."""

from __future__ import annotations

import json
import math
import re
import sys

NONE = "–"


def significant(value: float, digits: int = 3) -> str:
    """A number with this many significant digits and no exponent; a dash for NaN and infinities."""
    if not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def with_half(mean: float, half: float, digits: int = 3, between: str = " ") -> str:
    """mean ± half the width of its interval, with two digits; only the mean without interval."""
    if not math.isfinite(mean):
        return NONE
    if not math.isfinite(half):
        return significant(mean, digits)
    if half == 0:
        return f"{significant(mean, digits)}{between}± 0"
    decimals = max(0, 1 - math.floor(math.log10(half)))
    # No more than five significant digits of the mean, even if the interval is tiny.
    most = max(0, 4 - math.floor(math.log10(abs(mean)))) if mean else decimals
    decimals = min(decimals, most)
    return f"{mean:,.{decimals}f}{between}± {half:,.{decimals}f}"


def signed(mean: float, half: float) -> str:
    """For example +0.12 ± 0.34: two decimals and a true minus sign."""
    if not math.isfinite(mean):
        return NONE
    text = f"{mean:+.2f}".replace("-", "−")
    return text if not math.isfinite(half) else f"{text} ± {half:.2f}"


def between(low: float, high: float, digits: int = 3) -> str:
    """low–high."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return NONE
    return f"{significant(low, digits)}–{significant(high, digits)}"


def ratio(value: float) -> str:
    """For example ×1.23."""
    return f"×{value:.2f}" if math.isfinite(value) else NONE


def print_json(text: str) -> None:
    """Print JSON; characters that can't be encoded are escaped, which keeps the meaning."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = re.sub(r"[^\x00-\x7f]", lambda match: json.dumps(match[0])[1:-1], text)
    print(text)


def counted(count: int, noun: str) -> str:
    """For example 1 site, 2 sites, 0 sites."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def threads_name(count: int) -> str:
    """For example 1 thread, 2 threads."""
    return counted(count, "thread")


def size_name(size: int) -> str:
    """65536 -> "64 Ki"."""
    for unit, name in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size:,}"
