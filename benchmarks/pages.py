"""What the pages that the benchmarks write have in common."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from mishkit._environment import cpu_name
from mishkit.backends import cpu
from mishkit.lab.common.formats import NONE, significant

README = Path(__file__).parent.parent / "README.md"
DOCS = README.parent / "docs"


def put(path: Path, name: str, text: str) -> None:
    """Replace the text between the marks of that name; ValueError if they are missing."""
    begin, end = (f"<!-- {name}: {side} -->" for side in ("begin", "end"))
    before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"{path} has no {begin} … {end}")
    path.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")


def markdown(head: Sequence[str], body: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table whose first `words` columns are words and the others numbers."""
    line = "|---" * words + "|--:" * (len(head) - words) + "|"
    return "\n".join([_row(head), line, *map(_row, body)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def span(values: Sequence[float], digits: int = 2) -> str:
    """The range of values, for example over CPUs: "9.1–23"; a single value if they are equal."""
    if not values:
        return NONE
    low, high = (significant(value, digits) for value in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def facts() -> dict[str, str]:
    """The machine that is measured, and the date."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
    return {
        "cpu": cpu_name(),
        "cores": str(os.cpu_count()),
        "isa": cpu.isa(),
        "load": f"{load:.1f}",
        "date": time.strftime("%Y-%m-%d"),
    }
