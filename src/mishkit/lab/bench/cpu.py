"""`mishkit bench`: what every function costs, compared with torch's ReLU and torch's own function.

All contenders for a function are timed in one process, round-robin, on inputs N(0, 2). Times are in
nanoseconds per element; ratios are of minima unless they say median. A backward pass is timed at
the operator for tensors below 1 Mi elements, and through autograd on a retained graph above that.
Results go into fresh memory unless a case says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

import mishkit as mk
from mishkit.backends import cpu
from mishkit.functions import ACTIVATIONS

from ..common.bars import Interruptible, conclude, console, progress_bar, table
from ..common.environment import processor, warn_of_load
from ..common.formats import NONE, significant, size_name, threads_name
from ..common.timing import Timing, round_robin, torch_threads
from .cases import CALL_SIZES, CASES, EXPRESSION, OURS, RELU, TWIN, large, small
from .cpu_bars import verdicts
from .results import Key, Results, Timings, add_to, write_csv
from .settings import DTYPES, QUICK, Settings


@dataclass(frozen=True)
class Group:
    """Cases timed together: every case and contender of one function at one size."""

    function: str
    dtype: str
    size: int
    threads: int
    is_small: bool = False

    @property
    def seconds(self) -> float:
        """How long to time it: memory-bound sizes need few but long samples."""
        base = 5.0 if self.size > 1 << 22 else 1.0 if self.size > 1 << 18 else 0.5
        return base if self.threads == 1 else 0.5 * base


# ---- measuring -----------------------------------------------------------------------------------


def groups(settings: Settings) -> list[Group]:
    """The groups: one thread first, small sizes first; call overhead only with one thread."""
    groups = []
    for threads in sorted(settings.threads):
        for dtype in settings.dtypes:
            if threads == 1:
                groups += [
                    Group(name, dtype, size, 1, is_small=True)
                    for size in CALL_SIZES
                    for name in settings.functions
                ]
            groups += [
                Group(name, dtype, size, threads)
                for size in sorted(settings.sizes)
                for name in settings.functions
            ]
    return groups


def time_group(group: Group, share: float = 1.0) -> Timings:
    """Time one group, for a share of its usual time."""
    make = small if group.is_small else large
    # Cases timed without autograd are so because their inputs require no grad.
    calls = make(ACTIVATIONS[group.function], DTYPES[group.dtype], group.size)
    with torch_threads(group.threads):
        least = 3 if share == 1 else 2
        timings = round_robin(calls, seconds=group.seconds * share, least=least)
    unit = 1 if group.is_small else group.size
    return {
        Key(group.function, group.dtype, case, group.size, contender, group.threads): Timing(
            [sample / unit for sample in timing.samples]
        )
        for (case, contender), timing in timings.items()
    }


# ---- the command ---------------------------------------------------------------------------------


def main(settings: Settings, csv_path: Path | None = None, folder: Path | None = None) -> int:
    """Time, print the tables and the bars, write the CSV, add to the folder of results; returns 1
    if a bar is missed.
    """
    out = console()
    out.print(
        f"mishkit {mk.__version__} ({cpu.isa()}), torch {torch.__version__}, {processor()}\n"
        "ns per element: minimum/median; ÷relu: over torch's ReLU; torch÷: how many times faster "
        "than torch's own,\nor (*) than the formula in torch where torch has no such function. "
        "Backward is timed at the operator below 1 Mi elements, through "
        "autograd from there on.",
    )
    warn_of_load(out)
    results = Results()
    with Interruptible(out) as measured:
        _time_all(settings, results)
    _print_tables(out, settings, results)
    if folder is not None and not measured.interrupted:
        out.print(Text(f"Written: {add_to(folder, results)}"))
    title = "Bars, one thread: ratio of minima (of medians)"
    csv = csv_path, partial(write_csv, results=results)
    return conclude(out, title, verdicts(results), measured, csv)


def _time_all(settings: Settings, results: Results) -> None:
    share = QUICK if settings.quick else 1.0
    todo = groups(settings)
    with progress_bar() as bar:
        task = bar.add_task("timing", total=sum(group.seconds for group in todo))
        for group in todo:
            text = f"{group.function}, {group.dtype}, {size_name(group.size)}, {group.threads}"
            bar.update(task, description=text)
            results.timings.update(time_group(group, share))
            bar.update(task, advance=group.seconds)


def _print_tables(out: Console, settings: Settings, results: Results) -> None:
    for threads in sorted(settings.threads):
        for dtype in settings.dtypes:
            for case in CASES:
                _print_table(out, results, threads, dtype, case)


def _print_table(out: Console, results: Results, threads: int, dtype: str, case: str) -> None:
    keys = [
        key
        for key in results.timings
        if (key.threads, key.dtype, key.case, key.contender) == (threads, dtype, case, OURS)
    ]
    if not keys:
        return
    sizes = sorted({key.size for key in keys})
    unit = "ns a call" if case.startswith("call") else "ns"
    columns = ["function"]
    for size in sizes:
        columns += [f"{size_name(size)}, {unit}", "÷relu", "torch÷"]
    grid = table(f"{case}: {dtype}, {threads_name(threads)}", columns)
    for function in dict.fromkeys(key.function for key in keys):
        cells = (_cells(results, Key(function, dtype, case, s, OURS, threads)) for s in sizes)
        grid.add_row(function, *(cell for group in cells for cell in group))
    out.print(grid)


def _cells(results: Results, ours: Key) -> tuple[str, str, str]:
    timing = results.find(ours)
    if timing is None:
        return NONE, NONE, NONE
    relu, twin, expression = (ours._replace(contender=c) for c in (RELU, TWIN, EXPRESSION))
    by_torch = _figure(results.ratio(twin, ours))
    if by_torch == NONE and ours.function != RELU:
        by_torch = _figure(results.ratio(expression, ours), "*")
    return (
        f"{significant(timing.min)}/{significant(timing.median)}",
        _figure(results.ratio(ours, relu)),
        by_torch,
    )


def _figure(ratio: float | None, mark: str = "") -> str:
    return NONE if ratio is None else f"{ratio:.2f}{mark}" if ratio < 100 else f"{ratio:.0f}{mark}"
