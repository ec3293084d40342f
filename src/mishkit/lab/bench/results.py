"""The timings of `mishkit bench`, on a CPU or a GPU, and the ratios between them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

import mishkit as mk
from mishkit._environment import cpu_name, slug
from mishkit.backends import cpu

from ..common.files import whole_file
from ..common.timing import Timing
from .cases import OURS, SAME_WORK

QUANTILES = (0.1, 0.25, 0.75, 0.9)
FAMILY = "family"
"""The table of all functions; tables in others' layouts have their own names."""
CPU_COLUMNS = ("function", "dtype", "case", "size", "threads", "contender")
GPU_COLUMNS = ("table", "function", "dtype", "case", "size", "contender")
"""The parts of a key that are columns of a CSV file."""


class Key(NamedTuple):
    """Identifies one timing."""

    function: str
    dtype: str
    case: str
    size: int
    contender: str
    threads: int = 1
    """PyTorch's threads, on a CPU."""
    table: str = FAMILY

    def columns(self, names: tuple[str, ...]) -> list[str | int]:
        """The named parts."""
        return [getattr(self, name) for name in names]


Timings = dict[Key, Timing]


@dataclass
class Results:
    """Timings, errors, and contenders that could not be timed.

    CPU timings are in nanoseconds per element, or per call for the cases with
    `mishkit.lab.bench.cases.CALL_SIZES`; GPU timings are in nanoseconds per call.
    """

    timings: Timings = field(default_factory=dict)
    errors: dict[Key, float] = field(default_factory=dict)
    """L2 norms of the errors."""
    rooflines: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    """Arithmetic over memory traffic, at a GPU's published peaks, by function, body and dtype."""
    missing: list[str] = field(default_factory=list)
    """One line for each contender that could not be timed."""

    def find(self, key: Key) -> Timing | None:
        """The timing, or None; a case only mishkit has is mapped to what the others do instead."""
        if key.contender != OURS:
            key = key._replace(case=SAME_WORK.get(key.case, key.case))
        return self.timings.get(key)

    def ratio(self, above: Key, below: Key, statistic: str = "min") -> float | None:
        """The ratio of two times, of minima or medians; None if one is missing."""
        times = self.find(above), self.find(below)
        if times[0] is None or times[1] is None:
            return None
        return getattr(times[0], statistic) / getattr(times[1], statistic)


def write_csv(path: Path, results: Results) -> None:
    """One row per timing; times are in ns per element, or per call if `unit` says so."""
    _write(path, _rows(results))


def add_to(folder: Path, results: Results) -> Path:
    """Put timings into the file of this CPU and instruction set. They replace those for the same
    functions, dtypes, sizes and threads, since ratios are only meaningful within one run.
    """
    path = folder / f"{slug(cpu_name(), cpu.isa())}.csv"
    rows = _rows(results)
    work = {_work(row) for row in rows}
    old = [row for row in read_csv(path) if _work(row) not in work] if path.exists() else []
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, [*old, *rows])
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a file, by column."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _work(row: dict[str, str]) -> tuple[str, ...]:
    """What is timed together, each part as text."""
    return row["function"], row["dtype"], row["size"], row["threads"]


def _rows(results: Results) -> list[dict[str, str]]:
    made_by = {
        "mishkit": mk.__version__,
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "isa": cpu.isa(),
        "torch_cpu": torch.backends.cpu.get_cpu_capability(),
        "date": date.today().isoformat(),
    }
    rows = []
    for key, timing in results.timings.items():
        figures = [timing.min, timing.median, *map(timing.quantile, QUANTILES)]
        row = dict(zip(CPU_COLUMNS, map(str, key.columns(CPU_COLUMNS)), strict=True))
        row["unit"] = "ns/call" if key.case.startswith("call") else "ns/element"
        row["samples"] = str(len(timing.samples))
        row |= {name: f"{figure:.6g}" for name, figure in zip(_FIGURES, figures, strict=True)}
        rows.append(row | made_by)
    return rows


_FIGURES = ("min", "median", *(f"q{round(100 * q)}" for q in QUANTILES))
_COLUMNS = (
    *(*CPU_COLUMNS, "unit", "samples", *_FIGURES),
    *("mishkit", "torch", "cpu", "isa", "torch_cpu", "date"),
)


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with whole_file(path) as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
