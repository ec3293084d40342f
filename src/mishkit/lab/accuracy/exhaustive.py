"""`mishkit accuracy --exhaustive`: the error of every float32 kernel, over every float32 there is.

The figures are those of `mishkit.lab.accuracy.sampled`, with the same float64 references, and also:

df in ULP   |g − f'(x)| in ULP of f'(x), where |f'| is at least 1/4, so away from its zeros at the
            turn and far out on the left. Not in the tail, |f'| < 1.7e−36 or |f'| < |x|·exp(−87).
df_y        |d − f'(x)|, where d is the gradient from the output and the side, to compare with the
            gradient from the input. The error beyond the rounding of y is as in `sampled`, with f'
            at the exact inverse expanded to second order about x; wherever that exceeds the bar, f
            is inverted by Newton's method.
with sides  near its minimum f is rounded only once if its sides are kept: how many outputs differ
            there, and how far these are from f(x), in ULP.
falls       how far f(x) and f of the next float32 are in the wrong order, in ULP.
NaN         f of every NaN must be NaN.
the others  where the other instruction set that is compared gives different bits, and by how much.

The references are evaluated by torch and the errors counted in C++ (csrc/errors.cpp), in one
process per core. Blocks of bit patterns are added up in order, so an interrupted sweep continues
where it stopped and gives the same figures in the end.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import StringIO
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import rich.progress
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

import mishkit
from mishkit.backends import cpu
from mishkit.functions import ACTIVATIONS

from .. import Interrupted, LabError
from ..common import environment
from ..common.bars import Verdict, any_missed, console, progress_bar, summary, table, verdict_table
from ..common.errors import check_known
from ..common.files import check_writable, locked, whole_file
from ..common.timing import torch_threads
from . import sampled as accuracy
from .references import Reference
from .sampled import (
    BAR_DF,
    BAR_DF_Y,
    BAR_FROM_OUTPUT,
    BAR_TAIL,
    TAIL_F,
    TAIL_WEIGHT,
    Errors,
    Finding,
    Kernels,
)

PROGRESS = Path("mishkit-exhaustive.json")
CHUNK = 1 << 14
"""Values at a time: few enough for everything computed from them to fit the caches."""
BLOCK = 1 << 24
"""Bit patterns after which the progress is saved."""
INFINITY, MINUS_ZERO, MINUS_INFINITY = 0x7F80_0000, 0x8000_0000, 0xFF80_0000
LIBRARY = Path(__file__).with_name("_errors.so")
"""What counts errors; csrc/errors.cpp."""
FINITE = ((0, INFINITY), (MINUS_ZERO, MINUS_INFINITY))
NANS = ((INFINITY + 1, MINUS_ZERO), (MINUS_INFINITY + 1, 1 << 32))

SLOPES = 11
"""Classes of |f'|: at least 1, at least 1/2, …, less than 2⁻⁹."""
DF_ROWS = tuple(f"df_ulp_{place}" for place in range(SLOPES))
# As in csrc/errors.cpp; each row is a maximum, where it is, a total and a count.
ROWS = (
    *("f_ulp", "f_abs", "tail", "falls", "tail_falls", "df_abs"),
    *("df_y", "df_y_beyond", "df_far", *DF_ROWS),
)
COMPARED = ("f", "df", "df_y")
DIFFERENCES = tuple(f"{result}_differs_{unit}" for result in COMPARED for unit in ("ulp", "abs"))
# Outputs that differ when sides are kept; NaNs for which f is not NaN.
CHECKS = ("packed", "nan")
ALL_ROWS = (*ROWS, *DIFFERENCES, *CHECKS)

AWAY = 2
"""The last class of |f'| that counts as away from its zeros: at least 1/4."""
BAR_F = {a.name: a.ulp for a in ACTIVATIONS.values()}
BAR_DF_ULP = 4.0
BAR_FALLS = 1.0
BAR_PACKED = 0.6

Rows = NDArray[np.float64]
Span = tuple[int, int]


# ---- one block -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A range of bit patterns for one function, all of them finite or all NaN."""

    function: str
    isa: str
    versus: str
    """Another instruction set to compare with; the same one for no comparison."""
    start: int
    stop: int


def blocks(spans: Sequence[Span], size: int = BLOCK) -> list[Span]:
    """The spans, cut into pieces of at most `size`."""
    return [
        (start, min(start + size, stop))
        for first, stop in spans
        for start in range(first, stop, size)
    ]


def sweep(block: Block) -> Rows:
    """The result rows of one block: one row for each name in `ALL_ROWS`."""
    rows = np.zeros((len(ALL_ROWS), 4))
    rows[:, 1] = math.nan
    activation = ACTIVATIONS[block.function]
    kernels = Kernels(activation, activation.defaults)
    reference = Reference(activation, activation.defaults)
    # Chunks are too small to be worth several threads.
    with torch_threads(1), cpu.using(block.isa), np.errstate(invalid="ignore", over="ignore"):
        for start in range(block.start, block.stop, CHUNK):
            stop = min(start + CHUNK, block.stop)
            if block.start & INFINITY == INFINITY:
                _add_nans(rows, kernels, _values(start, stop))
            else:
                _add(rows, kernels, reference, _values(start, stop + 1), block.versus)
    return rows


def merged(rows: Rows, block: Rows) -> Rows:
    """The rows of all blocks so far, combined with those of one more."""
    total = rows + block
    is_worse = block[:, 0] > rows[:, 0]
    total[:, :2] = np.where(is_worse[:, None], block[:, :2], rows[:, :2])
    return total


def _values(start: int, stop: int) -> Tensor:
    patterns = np.arange(start, stop, dtype=np.uint64).astype(np.uint32)
    return torch.from_numpy(patterns.view(np.float32))


def _add(rows: Rows, kernels: Kernels, reference: Reference, x: Tensor, versus: str) -> None:
    """Count a chunk; its last value is only there for comparison with the one before."""
    exactly = x.double()
    f, df, d2f = reference.f(exactly), reference.df(exactly), reference.d2f(exactly)
    y, gradient = kernels.forward(x), kernels.backward(x)
    packed, side = kernels.packed(x)
    decoded = kernels.backward_packed(packed, side)
    far = add_errors(rows[: len(ROWS)], x, y, gradient, decoded, f, df, d2f, rules(reference))
    if far.numel():
        _add_far(rows[ROWS.index("df_y_beyond")], x[far], packed[far], decoded[far], reference)
    _add_packed(rows[ALL_ROWS.index("packed")], x, y, packed, f)
    if versus != cpu.isa():
        with cpu.using(versus):
            theirs = kernels.forward(x), kernels.backward(x), kernels.backward_packed(packed, side)
        ours = y, gradient, decoded
        for result, a, b in zip(COMPARED, ours, theirs, strict=True):
            unit = f if result == "f" else None
            add_differences(_rows_of(rows, result), x, a, b, unit, rules(reference))


def _add_packed(row: Rows, x: Tensor, y: Tensor, packed: Tensor, f: Tensor) -> None:
    """Count the outputs that differ when sides are kept, and their distances from f."""
    differs = (y.view(torch.int32) != packed.view(torch.int32))[:-1].nonzero()[:, 0]
    row[2:] += differs.numel(), x.numel() - 1
    exactly = f[differs].numpy()
    errors = Errors()
    in_ulp = np.abs(packed[differs].double().numpy() - exactly) / accuracy.ulp(exactly, "float32")
    errors.add(in_ulp, x[differs].double().numpy())
    if errors.max > row[0]:
        row[:2] = errors.max, errors.at


def _add_nans(rows: Rows, kernels: Kernels, x: Tensor) -> None:
    row = rows[ALL_ROWS.index("nan")]
    row[0] = row[2] = row[2] + float((~kernels.forward(x).isnan()).sum())
    row[3] += x.numel()


def _rows_of(rows: Rows, result: str) -> Rows:
    first = ALL_ROWS.index(f"{result}_differs_ulp")
    return rows[first : first + 2]


def _add_far(row: Rows, x: Tensor, y: Tensor, decoded: Tensor, reference: Reference) -> None:
    """Count errors of df_y by exact inverses, as the sweep with a stride does."""
    beyond = accuracy.beyond_rounding(decoded, y, x, reference)
    errors = Errors()
    errors.add(beyond, x.double().numpy())
    if errors.max > row[0]:
        row[:2] = errors.max, errors.at
    row[2:] += errors.total, errors.count


def rules(reference: Reference) -> Rows:
    """What C++ must know about the function: `Rules` in csrc/errors.cpp."""
    turn = reference.activation.turn_at(*reference.parameters)
    # Rounded, as the kernels see it.
    turn = -math.inf if turn is None else float(np.float32(turn))
    return np.array([turn, TAIL_F, TAIL_WEIGHT, BAR_DF_Y])


@cache
def _counter(name: str) -> Callable[..., int]:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    if not LIBRARY.exists():
        raise LabError("the library that counts errors was not built (pip install -v says why)")
    counter = getattr(ctypes.CDLL(str(LIBRARY)), name)
    if name == "mishkit_add_errors":
        counter.argtypes, counter.restype = [*[pointer] * 7, number, *[pointer] * 3], number
    else:
        counter.argtypes, counter.restype = [*[pointer] * 4, number, *[pointer] * 2], None
    return counter


def _check(tensors: Sequence[Tensor], rows: Rows) -> None:
    """Check the arguments, since C++ reads whatever it is given."""
    count = tensors[0].numel()
    assert all(t.is_contiguous() and t.numel() == count for t in tensors)
    assert rows.flags.c_contiguous and rows.dtype == np.float64 and count > 0


def add_errors(rows: Rows, *tensors: Any) -> Tensor:
    """Count the errors of a chunk; returns the places whose df_y must be examined more closely.

    The tensors are x, y, gradient and decoded in float32, f, df and d2f in float64, and `rules`.
    """
    *compared, rule = tensors
    _check(compared, rows)
    assert [t.dtype for t in compared] == [torch.float32] * 4 + [torch.float64] * 3
    assert rows.shape == (len(ROWS), 4)
    places = torch.empty(compared[0].numel(), dtype=torch.int64)
    pointers = [t.data_ptr() for t in compared]
    ends = rule.ctypes.data, rows.ctypes.data, places.data_ptr()
    count = _counter("mishkit_add_errors")(*pointers, compared[0].numel() - 1, *ends)
    return places[:count]


def add_differences(
    rows: Rows, x: Tensor, a: Tensor, b: Tensor, f: Tensor | None, rule: Rows
) -> None:
    """Count where a and b differ, except in the last element."""
    _check([x, a, b, *([] if f is None else [f])], rows)
    assert rows.shape == (2, 4)
    unit = None if f is None else f.data_ptr()
    pointers = x.data_ptr(), a.data_ptr(), b.data_ptr(), unit
    _counter("mishkit_add_differences")(
        *pointers, x.numel() - 1, rule.ctypes.data, rows.ctypes.data
    )


# ---- all blocks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """What to sweep, and where the progress and the report are written."""

    functions: Sequence[str] = tuple(ACTIVATIONS)
    isa: str | None = None
    """The instruction set of the kernels; None for the one in use."""
    versus: str | None = None
    """The instruction set to compare with; None for the best of the others."""
    processes: int | None = None
    """None for one per core."""
    progress: Path = PROGRESS
    markdown: Path | None = None
    spans: Sequence[Span] = (*FINITE, *NANS)
    """Bit patterns to sweep; all of them, except in tests."""
    block: int = BLOCK

    def __post_init__(self) -> None:
        check_known("function", self.functions, ACTIVATIONS)
        if not cpu.isas():
            raise LabError("the kernels were not built: there is nothing to sweep")
        named = [isa for isa in (self.isa, self.versus) if isa]
        check_known("instruction set", named, cpu.isas())
        if self.processes is not None and self.processes < 1:
            raise LabError("there must be a process at least")
        for path in (self.progress, self.markdown):
            check_writable(path)

    @property
    def kernels(self) -> tuple[str, str]:
        """The instruction set, and the one to compare with; the same one if there is no other."""
        isa = self.isa or cpu.isa()
        alternatives = [name for name in cpu.isas() if name != isa]
        return isa, self.versus or (alternatives[-1] if alternatives else isa)


@dataclass
class Swept:
    """The results for one function, as far as it has been swept."""

    blocks: int
    seconds: float
    rows: Rows

    @classmethod
    def nothing(cls) -> Swept:
        """The state before the first block."""
        rows = np.zeros((len(ALL_ROWS), 4))
        rows[:, 1] = math.nan
        return cls(0, 0.0, rows)

    def row(self, name: str) -> Errors:
        """The row with this name."""
        largest, place, total, count = self.rows[ALL_ROWS.index(name)].tolist()
        return Errors(largest, place, total, count)

    def df_ulp(self, places: range) -> Errors:
        """The errors of df in ULP, over several classes of |f'|."""
        rows = [self.row(DF_ROWS[place]) for place in places]
        worst = max(rows, key=lambda row: row.max)
        totals = sum(row.total for row in rows), sum(row.count for row in rows)
        return Errors(worst.max, worst.at, *totals)


class Progress:
    """What has been swept so far, saved in a file that is never left half written."""

    def __init__(self, settings: Settings) -> None:
        self.path = settings.progress
        self.conditions = _conditions(settings)
        self.swept: dict[str, Swept] = {}
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            stored = json.loads(self.path.read_text())
            facts, functions = stored["what"], stored["functions"]
            for name, (count, seconds, rows) in functions.items():
                array = np.array([rows[row] for row in ALL_ROWS], dtype=np.float64)
                if array.shape != (len(ALL_ROWS), 4) or not (0 <= int(count) == count):
                    raise ValueError
                self.swept[name] = Swept(count, seconds, array)
        except (OSError, AttributeError, ValueError, KeyError, TypeError):
            raise LabError(f"{self.path} holds no progress of a sweep") from None
        for key, value in self.conditions.items():
            if facts.get(key) != value:
                raise LabError(
                    f"{self.path} is the progress of another sweep ({key} {facts.get(key)!r}, now "
                    f"{value!r}): delete it, or name another file with --resume"
                )

    def add(self, name: str, rows: Rows, seconds: float) -> None:
        """Add another block of a function, and save the progress."""
        swept = self.swept.setdefault(name, Swept.nothing())
        swept.rows = merged(swept.rows, rows)
        swept.blocks += 1
        swept.seconds += seconds
        functions = {
            name: (s.blocks, s.seconds, dict(zip(ALL_ROWS, s.rows.tolist(), strict=True)))
            for name, s in self.swept.items()
        }
        with whole_file(self.path) as file:
            file.write(json.dumps({"what": self.conditions, "functions": functions}))


def _conditions(settings: Settings) -> dict[str, Any]:
    """Everything that the figures depend on."""
    isa, versus = settings.kernels
    return {
        "version": mishkit.__version__,
        "library": hashlib.sha256(cpu.LIBRARY.read_bytes()).hexdigest()[:16],
        "instruction set": isa,
        "compared": versus,
        "torch": torch.__version__,
        "processor": environment.processor(),
        "block": settings.block,
        "spans": [list(span) for span in settings.spans],
    }


def run(settings: Settings, advance: Callable[[str, int], None]) -> dict[str, Swept]:
    """Sweep whatever remains; calls `advance` with every function's finished bit patterns."""
    progress = Progress(settings)
    spans = blocks(settings.spans, settings.block)
    sizes = [stop - start for start, stop in spans]
    functions = list(dict.fromkeys(settings.functions))
    todo, finished = [], 0
    for name in functions:
        count = progress.swept[name].blocks if name in progress.swept else 0
        todo += [Block(name, *settings.kernels, *span) for span in spans[count:]]
        finished += sum(sizes[:count])
    advance(todo[0].function if todo else functions[-1], finished)
    with _mapping(settings.processes or os.cpu_count() or 1, len(todo)) as parallel_map:
        begin = time.perf_counter()
        for block, rows in zip(todo, parallel_map(sweep, todo), strict=True):
            end = time.perf_counter()
            progress.add(block.function, rows, end - begin)
            begin = end
            advance(block.function, block.stop - block.start)
    return {name: progress.swept[name] for name in functions}


@contextmanager
def _mapping(processes: int, tasks: int) -> Iterator[Callable[..., Any]]:
    """`map` with this many processes, with results in order."""
    if min(processes, tasks) <= 1:
        yield map
        return
    # Not forked, since torch's threads would be missing.
    pool = ProcessPoolExecutor(min(processes, tasks), get_context("spawn"), initializer=_begin)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Set up a new process: the parent handles Ctrl-C, and this process ends if the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# ---- the report ----------------------------------------------------------------------------------

WIDE = 132
"""Columns that the tables need."""
LEGEND = """\
df_y: beside the gradient of the input; beyond: what the rounding of y doesn't explain.
order: how far f(x) and f of the next float32 are in the wrong order, in ULP; min: minutes.
far: 1 and more from the turn. tail: |f| < 1.7e−36 or |f| < |x|·exp(−87); ULP is of f elsewhere.
"""


def findings(name: str, swept: Swept, broken_limits: Sequence[str]) -> list[Finding]:
    """The figures of a function that have a bar."""

    def errors(claim: str, unit: str, limit: float, worst: Errors) -> Finding:
        return Finding(claim, f"≤ {limit:g}{unit}", worst.max, limit, str(worst))

    nans = swept.row("nan").total
    away = swept.df_ulp(range(AWAY + 1))
    return [
        errors("f, maximum", " ULP", BAR_F[name], swept.row("f_ulp")),
        errors("f in the tail, absolute", "", BAR_TAIL, swept.row("tail")),
        errors("f out of order", " ULP", BAR_FALLS, swept.row("falls")),
        errors("df, absolute", "", BAR_DF, swept.row("df_abs")),
        errors(f"df where |f'| {_slope(AWAY)}", " ULP", BAR_DF_ULP, away),
        errors("df_y, absolute", "", BAR_FROM_OUTPUT, swept.row("df_y")),
        errors("df_y beyond the rounding of y", "", BAR_DF_Y, swept.row("df_y_beyond")),
        Finding(
            "limits at ±inf", "exact", len(broken_limits), 0, ", ".join(broken_limits) or "exact"
        ),
        Finding("NaNs that f loses", "none", nans, 0, f"{nans:.0f}"),
        errors("f with sides, where another", " ULP", BAR_PACKED, swept.row("packed")),
    ]


def _broken_limits(name: str) -> list[str]:
    activation = ACTIVATIONS[name]
    kernels = Kernels(activation, activation.defaults)
    reference = Reference(activation, activation.defaults)
    return accuracy.broken_limits(kernels, reference, torch.float32)


def verdicts(swept: dict[str, Swept], isa: str) -> list[Verdict]:
    """One row per bar: every function that misses it, or the one that comes closest."""
    with cpu.using(isa):
        by_bar: dict[tuple[str, str], list[tuple[Finding, str]]] = {}
        for name, results in swept.items():
            for finding in findings(name, results, _broken_limits(name)):
                by_bar.setdefault((finding.claim, finding.bar), []).append((finding, name))
    return [accuracy.verdict(claim, bar, results) for (claim, bar), results in by_bar.items()]


def tables(swept: dict[str, Swept], isa: str, versus: str) -> list[Table]:
    """The errors, the errors of df by |f'|, and the comparison of instruction sets."""
    columns = (
        "function",
        "f, ULP",
        "mean",
        "f, abs.",
        "order",
        "df, abs.",
        "df_y, abs.",
        "beyond",
        "min",
    )
    errors = table(f"float32, every value, {isa}: the largest errors, and where", columns)
    classes = ("function", *(_slope(place) for place in range(SLOPES)), "far")
    slopes = table("df in ULP, by |f'|", classes)
    headings = ("function", "f", "ULP", "tail", "abs.", "df", "abs.", "df_y", "abs.")
    bits = table(f"{isa} and {versus}: how many results differ, and by how much", headings)
    for name, s in swept.items():
        f_ulp, f_abs = s.row("f_ulp"), s.row("f_abs")
        errors.add_row(
            *(name, str(f_ulp), f"{f_ulp.mean:.3f}", str(f_abs)),
            *(f"{s.row('falls').max:.3g}", str(s.row("df_abs")), str(s.row("df_y"))),
            f"{s.row('df_y_beyond').max:.1e}",
            f"{s.seconds / 60:.1f}",
        )
        slopes.add_row(name, *(f"{s.row(row).max:.3g}" for row in (*DF_ROWS, "df_far")))
        f, *slopes_of = (s.row(f"{result}_differs_abs") for result in COMPARED)
        in_ulp = s.row("f_differs_ulp")
        bits.add_row(
            *(name, f"{in_ulp.total:,.0f}", f"{in_ulp.max:.3g}"),
            *(f"{f.total - in_ulp.total:,.0f}", _size(f)),
            *(text for row in slopes_of for text in (f"{row.total:,.0f}", _size(row))),
        )
    return [errors, slopes, *([bits] if versus != isa else [])]


def _size(errors: Errors) -> str:
    return f"{errors.max:.1e}" if errors.max else "0"


def _slope(place: int) -> str:
    if place == SLOPES - 1:
        return f"< 1/{1 << (place - 1)}"
    return "≥ 1" if place == 0 else f"≥ 1/{1 << place}"


def report(
    swept: dict[str, Swept], settings: Settings
) -> tuple[list[Verdict], Callable[..., None]]:
    """The verdicts, and a function that prints them with the tables."""
    isa, versus = settings.kernels
    judged = verdicts(swept, isa)

    def show(out: Console) -> None:
        out.width = max(WIDE, out.width)
        for grid in tables(swept, isa, versus):
            out.print(grid)
        out.print(LEGEND)
        title = "Bars (the function nearest to each, or all that miss it)"
        out.print(verdict_table(title, judged))
        out.print(summary(judged) + ".")

    return judged, show


def markdown(swept: dict[str, Swept], settings: Settings, show: Callable[..., None]) -> str:
    """The page for docs/."""
    text = Console(file=StringIO(), width=WIDE, highlight=False, color_system=None)
    show(text)
    assert isinstance(text.file, StringIO)
    lines = [line.rstrip() for line in text.file.getvalue().rstrip().splitlines()]
    minutes = sum(s.seconds for s in swept.values()) / 60
    facts = {
        "mishkit": f"{mishkit.__version__}, commit {environment.commit()}",
        "processor": environment.processor(),
        "compiler": cpu.compiler(),
        "PyTorch": torch.__version__,
        "time": f"{minutes:.0f} minutes in {settings.processes or os.cpu_count()} processes",
    }
    head = "\n".join(f"- **{name}**: {value}" for name, value in facts.items())
    return f"{HEAD}\n{head}\n\n```\n" + "\n".join(lines) + "\n```\n"


HEAD = """\
# Every float32

`mishkit accuracy --exhaustive --markdown FILE` (`make exhaustive`) makes this page. It passes all
2³² bit patterns of float32 through the CPU kernels of every function, with default parameters. What
the figures mean is explained in [Accuracy](accuracy.md) and at the top of
`src/mishkit/lab/accuracy/exhaustive.py`.
"""


def main(settings: Settings) -> int:
    """Sweep, print tables and bars, write the page; returns 1 if a bar is missed."""
    out = console()
    total = sum(stop - start for start, stop in settings.spans) * len(settings.functions)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=None),
        rich.progress.TextColumn("{task.percentage:3.1f} %"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
    )
    beside = settings.progress.with_name(f"{settings.progress.name}.lock")
    try:
        with (
            locked(beside, str(settings.progress)),
            progress_bar(*columns, speed_estimate_period=300) as bar,
        ):
            task = bar.add_task("sweeping", total=total)
            swept = run(
                settings, lambda name, count: bar.update(task, advance=count, description=name)
            )
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; the same command goes on from {settings.progress}") from None
    judged, show = report(swept, settings)
    show(out)
    if settings.markdown is not None:
        with whole_file(settings.markdown) as file:
            file.write(markdown(swept, settings, show))
    return int(any_missed(judged))
