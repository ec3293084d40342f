"""How figures are written, in the terminal and in the report alike."""

from __future__ import annotations

import json
import math
import re
import sys

NONE = "–"


def significant(value: float, digits: int = 3) -> str:
    """So many significant digits, no exponent; a dash for what is not a number."""
    if not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def with_half(mean: float, half: float, digits: int = 3, between: str = " ") -> str:
    """mean ± the half-width of its interval, with two digits of that; alone where there is none."""
    if not math.isfinite(mean):
        return NONE
    if not math.isfinite(half):
        return significant(mean, digits)
    if half == 0:
        return f"{significant(mean, digits)}{between}± 0"
    decimals = max(0, 1 - math.floor(math.log10(half)))
    # No more digits than the mean deserves: a tiny interval does not make it longer than five.
    most = max(0, 4 - math.floor(math.log10(abs(mean)))) if mean else decimals
    decimals = min(decimals, most)
    return f"{mean:,.{decimals}f}{between}± {half:,.{decimals}f}"


def signed(mean: float, half: float) -> str:
    """+0.12 ± 0.34, with two decimals and a true minus."""
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
    """×1.23"""
    return f"×{value:.2f}" if math.isfinite(value) else NONE


def print_json(text: str) -> None:
    """Print JSON; what the terminal or the pipe can't encode is escaped, and stays the same."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)
    print(text)


def counted(count: int, noun: str) -> str:
    """1 site, 2 sites, 0 sites."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def threads_name(count: int) -> str:
    """1 thread, 2 threads."""
    return counted(count, "thread")


def size_name(size: int) -> str:
    """65536 -> "64 Ki"."""
    for unit, name in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size:,}"
