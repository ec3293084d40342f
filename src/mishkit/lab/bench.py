"""`mishkit bench`: what every function costs, beside torch's ReLU and torch's own function.

All contenders of a function are timed in one process, in turns (round-robin), on inputs N(0, 2).
Times are nanoseconds per element, ratios are between minima unless they say median. A backward
pass is timed at the operator on tensors below 1 Mi elements, and from there on through autograd on
a retained graph; results go into fresh memory unless a case says otherwise.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import rich.progress
import torch
from rich.console import Console

import mishkit as mk
from mishkit.activation import DTYPES as _DTYPES
from mishkit.backends import cpu
from mishkit.functions import ACTIVATIONS

from . import LabError
from ._bench_cases import (
    CALL_SIZES,
    CASES,
    EXPRESSION,
    OURS,
    RELU,
    SAME_WORK,
    TWIN,
    large,
    small,
)
from ._files import whole_file
from ._timing import Timing, round_robin, torch_threads
from ._verdicts import Interruptible, conclude, console, table
from .environment import processor
from .formats import NONE, significant, threads_name

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES}
DEVICES = ("cpu", "cuda")
GPU_DTYPES = ("float32", "bfloat16", "float16")
GPU_SIZES = (1 << 20, 1 << 24, 1 << 27)
"""What is timed on a GPU unless it is said: the last is beyond every cache, at 256 MiB and more."""
UNITS = {"": 1, "ki": 1 << 10, "mi": 1 << 20}
QUANTILES = (0.1, 0.25, 0.75, 0.9)
QUICK = 0.2
"""The share of the time that a quick run takes."""


class Key(NamedTuple):
    """What one timing is of."""

    function: str
    dtype: str
    case: str
    size: int
    threads: int
    contender: str


Timings = dict[Key, Timing]
"""Nanoseconds per element; per call for the cases on `CALL_SIZES`."""


@dataclass(frozen=True)
class Settings:
    """What to time, and for how long."""

    functions: Sequence[str] = tuple(ACTIVATIONS)
    dtypes: Sequence[str] = ("float32", "bfloat16")
    sizes: Sequence[int] = (1 << 16, 1 << 20, 1 << 24)
    threads: Sequence[int] = (1, 2)
    device: str = "cpu"
    quick: bool = False
    paper: bool = False

    def __post_init__(self) -> None:
        _check("function", self.functions, ACTIVATIONS)
        _check("dtype", self.dtypes, DTYPES)
        _check("device", [self.device], DEVICES)
        if self.paper and self.device == "cpu":
            raise LabError("--paper is about GPU kernels: it wants --device cuda")
        if not self.sizes or min(self.sizes) < 1 or not self.threads or min(self.threads) < 1:
            raise LabError("sizes and threads must be positive")


@dataclass(frozen=True)
class Group:
    """What is timed in turns: every case and contender of one function at one size."""

    function: str
    dtype: str
    size: int
    threads: int
    is_small: bool = False

    @property
    def seconds(self) -> float:
        """How long it is worth: memory-bound sizes need few but long samples."""
        base = 5.0 if self.size > 1 << 22 else 1.0 if self.size > 1 << 18 else 0.5
        return base if self.threads == 1 else 0.5 * base


def _check(kind: str, wanted: Iterable[str], known: Iterable[str]) -> None:
    for name in wanted:
        if name not in known:
            raise LabError(f"unknown {kind} {name!r}; there are {', '.join(known)}")


def parse_numbers(text: str) -> tuple[int, ...]:
    """ "64Ki,1Mi,16" -> (65536, 1048576, 16)."""
    return tuple(_parse_number(part.strip().lower()) for part in text.split(","))


def _parse_number(text: str) -> int:
    digits = text.rstrip("kim")
    unit = text[len(digits) :]
    if not digits.strip().isdecimal() or unit not in UNITS:
        raise LabError(f"{text!r} is not a count; write 16, 64Ki or 1Mi")
    return int(digits) * UNITS[unit]


def size_name(size: int) -> str:
    """65536 -> "64 Ki"."""
    for unit, name in ((1 << 20, "Mi"), (1 << 10, "Ki")):
        if size >= unit and size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size:,}"


# ---- measuring -----------------------------------------------------------------------------------


def groups(settings: Settings) -> list[Group]:
    """The groups, one thread first and small sizes first; call overhead at one thread alone."""
    found = []
    for threads in sorted(settings.threads):
        for dtype in settings.dtypes:
            if threads == 1:
                found += [
                    Group(name, dtype, size, 1, is_small=True)
                    for size in CALL_SIZES
                    for name in settings.functions
                ]
            found += [
                Group(name, dtype, size, threads)
                for size in sorted(settings.sizes)
                for name in settings.functions
            ]
    return found


def time_group(group: Group, share: float = 1.0) -> Timings:
    """Time one group, for a share of the time that it is worth."""
    make = small if group.is_small else large
    # What is timed without autograd is so because its inputs require no grad.
    calls = make(ACTIVATIONS[group.function], DTYPES[group.dtype], group.size)
    with torch_threads(group.threads):
        least = 3 if share == 1 else 2
        timings = round_robin(calls, seconds=group.seconds * share, least=least)
    unit = 1 if group.is_small else group.size
    return {
        Key(group.function, group.dtype, case, group.size, group.threads, contender): Timing(
            [sample / unit for sample in timing.samples]
        )
        for (case, contender), timing in timings.items()
    }


@dataclass
class Results:
    """The timings, and the ratios between them."""

    timings: Timings = field(default_factory=dict)

    def find(self, key: Key) -> Timing | None:
        """The timing, or None; a case of mishkit's alone stands for what the others do instead."""
        if key.contender != OURS:
            key = key._replace(case=SAME_WORK.get(key.case, key.case))
        return self.timings.get(key)

    def ratio(self, above: Key, below: Key, statistic: str = "min") -> float | None:
        """One time over another, by their minima or medians; None where one is missing."""
        times = self.find(above), self.find(below)
        if times[0] is None or times[1] is None:
            return None
        return getattr(times[0], statistic) / getattr(times[1], statistic)


# ---- the command ---------------------------------------------------------------------------------


def main(settings: Settings, csv_path: Path | None = None) -> int:
    """Time, print the tables and the bars, write the CSV; 1 where a bar is missed."""
    from ._bench_bars import verdicts

    if settings.paper:
        from . import _paper

        return _paper.main(settings.functions, settings.dtypes, csv_path)
    if settings.device == "cuda":
        from . import _bench_gpu

        return _bench_gpu.main(settings, csv_path)
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
        _time_all(out, settings, results)
    _print_tables(out, settings, results)
    title = "Bars, one thread: ratio of minima (of medians)"
    csv = csv_path, partial(write_csv, results=results)
    return conclude(out, title, verdicts(results), measured, csv)


def main_of_layer(settings: Settings, csv_path: Path | None = None) -> int:
    """The same for the APTx layer, whose sizes and dtypes are its own."""
    if settings.paper:
        raise LabError("--paper is about the functions: it does not go with --neuron")
    if settings.device == "cuda":
        from . import _bench_gpu_neuron

        return _bench_gpu_neuron.main(settings.quick, csv_path)
    from . import _bench_neuron

    return _bench_neuron.main(settings.quick, csv_path)


def warn_of_load(out: Console) -> None:
    """Say so where other processes would disturb what is timed."""
    if not hasattr(os, "getloadavg"):
        return
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.5 * cores:
        out.print(
            f"Other work is going on ({load:.1f} processes in the last minute, {cores} cores): "
            "with several threads expect stalls at their barriers."
        )


def _time_all(out: Console, settings: Settings, results: Results) -> None:
    share = QUICK if settings.quick else 1.0
    todo = groups(settings)
    with rich.progress.Progress(console=out, transient=True) as bar:
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
    made = table(f"{case}: {dtype}, {threads_name(threads)}", columns)
    for function in dict.fromkeys(key.function for key in keys):
        cells = (_cells(results, Key(function, dtype, case, s, threads, OURS)) for s in sizes)
        made.add_row(function, *(cell for group in cells for cell in group))
    out.print(made)


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


def write_csv(path: Path, results: Results) -> None:
    """A row a timing; times in ns per element, per call where `unit` says so."""
    names = [f"q{round(100 * q)}" for q in QUANTILES]
    made_by = {
        "mishkit": mk.__version__,
        "torch": torch.__version__,
        "cpu": processor(),
        "isa": cpu.isa(),
    }
    statistics = ["unit", "samples", "min", "median", *names]
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow([*Key._fields, *statistics, *made_by])
        for key, timing in results.timings.items():
            unit = "ns/call" if key.case.startswith("call") else "ns/element"
            figures = [timing.min, timing.median, *map(timing.quantile, QUANTILES)]
            row = [unit, len(timing.samples), *(f"{figure:.6g}" for figure in figures)]
            writer.writerow([*key, *row, *made_by.values()])
