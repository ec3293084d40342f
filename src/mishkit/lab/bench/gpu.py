"""`mishkit bench --device cuda`: what every function costs on a GPU, and the published tables.

Everything for one function at one size is timed round-robin (see `mishkit.lab.common.gpu_timing`),
on inputs N(0, 2): mishkit's five bodies at the operator, torch's own function, torch.compile of it,
torch's ReLU, and a memory-to-memory copy. GB/s are the bytes that the work needs (one read or write
per element and tensor, and the side) divided by the minimum time. The copy's GB/s in the same run
show what memory can deliver, and all other figures are compared with it. If torch doesn't have the
function, torch÷ and compile÷ refer to its formula in torch. Results go into memory that torch's
allocator already holds.

The L2 error is ‖result − exact‖₂, where exact is the plain formula in float64.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

import mishkit as mk
from mishkit import bodies
from mishkit.activation import Activation
from mishkit.backends import triton
from mishkit.functions import ACTIVATIONS

from ..code import paper as _paper
from ..code.gpu import Code, compile_all
from ..code.roofline import GPU, roofline
from ..common.bars import Interruptible, Verdict, conclude, console, progress_bar, table
from ..common.files import whole_file
from ..common.formats import NONE, significant, size_name
from ..common.gpu_timing import ROUNDS, WARM_ROUNDS, Stopwatch
from ..common.timing import Call
from . import published_gpu
from .cases import (
    BACKWARD,
    EXPRESSION,
    FORWARD,
    FROM_OUTPUT,
    OURS,
    PACKED,
    PEERS,
    RELU,
    SAME_WORK,
    TWIN,
    backward_call,
    expression,
    working,
)
from .gpu_device import DEVICE, Device, device, normal
from .results import FAMILY, GPU_COLUMNS, Key, Results
from .settings import DTYPES, Settings

QUICK_ROUNDS = 10
COPY, DOUBLE, COMPILED = "copy", "double backward", "torch.compile"
BODIES = {
    FORWARD: bodies.FORWARD,
    PACKED: bodies.FORWARD_PACKED,
    BACKWARD: bodies.BACKWARD,
    FROM_OUTPUT: bodies.BACKWARD_PACKED,
    DOUBLE: bodies.DOUBLE_BACKWARD,
}
"""The cases for a function, with the kernel bodies."""
TENSORS = {COPY: 2} | {case: bodies.BODIES[body].traffic for case, body in BODIES.items()}
"""How many tensors each case reads or writes."""
WIDTH = 126
"""Columns that the tables need."""


def bytes_per_element(key: Key) -> float:
    """The bytes that a case needs to read and write."""
    has_side = key.contender == OURS and key.case in SAME_WORK
    has_side = has_side and ACTIVATIONS[key.function].turn is not None
    return TENSORS[key.case] * DTYPES[key.dtype].itemsize + has_side / 8


def speed(results: Results, key: Key) -> float | None:
    """GB/s, from the minimum time; None if nothing was timed."""
    timing = results.find(key)
    return None if timing is None else key.size * bytes_per_element(key) / timing.min


def share_of_copy(results: Results, key: Key) -> float | None:
    """The speed divided by that of a memory-to-memory copy."""
    ours = speed(results, key)
    copy = speed(results, key._replace(case=COPY, contender=COPY))
    return None if ours is None or copy is None else ours / copy


# ---- what is timed -------------------------------------------------------------------------------


def calls(a: Activation, dtype: torch.dtype, size: int) -> Iterator[tuple[tuple[str, str], Call]]:
    """Calls by case and contender. What can't be created becomes a call that raises."""
    x, g, gg = (normal(size, dtype, seed) for seed in range(3))
    y = torch.empty_like(x)
    yield (COPY, COPY), Call(partial(y.copy_, x))
    yield from _ours(a, x, g, gg)
    peers = {RELU: PEERS["relu"].forward}
    by_formula = expression(a)
    if a.name in PEERS and a.name != RELU:
        peers[TWIN] = PEERS[a.name].forward
    elif by_formula is not None:
        peers[EXPRESSION] = by_formula
    for name, function in peers.items():
        yield (FORWARD, name), Call(partial(function, x))
        yield (BACKWARD, name), backward_call(function, x, g)
        yield (DOUBLE, name), _double_backward(function, x, g, gg)
    theirs = peers.get(TWIN) or peers.get(EXPRESSION) or peers[RELU]
    compiled = torch.compile(theirs, dynamic=False)
    yield (FORWARD, COMPILED), Call(partial(compiled, x))
    yield (BACKWARD, COMPILED), backward_call(compiled, x, g)


def _ours(
    a: Activation, x: Tensor, g: Tensor, gg: Tensor
) -> Iterator[tuple[tuple[str, str], Call]]:
    def operator(ending: str) -> Callable[..., Any]:
        return getattr(torch.ops.mishkit, a.name + ending).default

    parameters = a.defaults
    yield (FORWARD, OURS), Call(partial(mk.functional.FUNCTIONS[a.name], x))
    yield (BACKWARD, OURS), Call(partial(operator("_backward"), g, x, *parameters))
    y, side = operator("_packed")(x, *parameters)
    if a.turn is not None:
        yield (PACKED, OURS), Call(partial(operator("_packed"), x, *parameters))
    from_output = partial(operator("_backward_packed"), g, y, side, *parameters)
    yield (FROM_OUTPUT, OURS), Call(from_output)
    yield (DOUBLE, OURS), Call(partial(operator("_double_backward"), gg, g, x, *parameters))


def _double_backward(
    function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, gg: Tensor
) -> Call:
    leaf, grad = x.detach().requires_grad_(), g.detach().requires_grad_()
    gradients = list[Tensor]()

    def run() -> Any:
        if not gradients:
            gradients.extend(torch.autograd.grad(function(leaf), leaf, grad, create_graph=True))
        # ReLU's gradient depends only on the sign of the input.
        return torch.autograd.grad(
            gradients[0], (grad, leaf), gg, retain_graph=True, allow_unused=True
        )

    return Call(run)


def time_function(
    results: Results, name: str, dtype: str, size: int, stopwatch: Stopwatch, rounds: int
) -> None:
    """Time every case and contender of one function; if memory runs out, `missing` says so."""
    torch.compiler.reset()
    label = f"{name}, {dtype}, {size_name(size)}"
    try:
        working_calls = working(
            calls(ACTIVATIONS[name], DTYPES[dtype], size), results.missing, label
        )
        timings = stopwatch.time(working_calls, rounds=rounds, warm=WARM_ROUNDS)
    except torch.OutOfMemoryError:
        results.missing.append(f"{label}: the GPU's memory does not suffice")
        return
    for (case, contender), timing in timings.items():
        results.timings[Key(name, dtype, case, size, contender)] = timing


def rooflines(settings: Settings, gpu: GPU | None) -> dict[tuple[str, str, str], float]:
    """The rooflines of the kernels that compile, for the published GPU like this one, if any."""
    dtypes = [dtype for dtype in settings.dtypes if dtype in _paper.DTYPES]
    if gpu is None or not triton.available():
        return {}
    ours = [k for k in _paper.kernels(settings.functions, dtypes) if k.is_ours]
    compiled = compile_all([kernel.job(gpu.target) for kernel in ours], _paper.find_build)
    return {
        (job.function, job.body, job.dtype): roofline(code, gpu).ratio
        for job, code in compiled
        if isinstance(code, Code)
    }


# ---- the command ---------------------------------------------------------------------------------


def main(settings: Settings, csv_path: Path | None = None) -> int:
    """Time, print the tables and the bars, write the CSV; returns 1 if a bar is missed."""
    gpu, out, results = device(), console(), Results()
    out.width = max(WIDTH, out.width)
    out.print(Text(head(gpu, settings.dtypes)))
    stopwatch = Stopwatch(DEVICE, gpu.cache)
    rounds = QUICK_ROUNDS if settings.quick else ROUNDS
    with Interruptible(out) as measured:
        if not settings.quick:
            results.rooflines = rooflines(settings, gpu.published)
        _time_all(settings, results, stopwatch, rounds)
        published_gpu.time_all(results, settings, stopwatch)
    for dtype, size in itertools.product(settings.dtypes, sorted(settings.sizes)):
        _print_table(out, results, dtype, size, gpu)
    published_gpu.print_all(out, results, settings)
    return finish(out, results, list(verdicts(results)), measured, gpu, csv_path)


def head_lines(gpu: Device, dtypes: Iterable[str]) -> tuple[str, str]:
    """The software and the GPU, one line each."""
    by_triton = triton.available() and any(DTYPES[dtype] in triton.DTYPES for dtype in dtypes)
    kernels = "Triton kernels" if by_triton else "plain torch: no Triton, or no dtype for it"
    return (
        f"mishkit {mk.__version__} ({kernels}), torch {torch.__version__}, {gpu.software}",
        f"{gpu.name} ({gpu.target}), L2 cache {gpu.cache / 2**20:.0f} MiB",
    )


def head(gpu: Device, dtypes: Iterable[str]) -> str:
    """What is timed, with what, and what the columns mean."""
    like = gpu.published.name if gpu.published else "none"
    return "\n".join(head_lines(gpu, dtypes)) + (
        "\n"
        "Times by events on the current stream, the caches flushed before each; ns an element: "
        "minimum/median. GB/s and the\nshare of the copy's are by the minimum. ÷relu: over torch's "
        "ReLU; torch÷, compile÷: how many times faster than\ntorch's own, eager and compiled, or "
        "(*) than the formula in torch. paper: arithmetic over memory by published\n"
        f"peaks, of {like}; under 1 memory's speed is possible. !: the GPU may have waited for "
        "the host."
    )


def finish(
    out: Console,
    results: Results,
    judged: Sequence[Verdict],
    measured: Interruptible,
    gpu: Device,
    csv_path: Path | None,
) -> int:
    """Print what is missing and the bars, write the CSV (see `conclude`)."""
    for line in dict.fromkeys(results.missing):
        out.print(Text(line))
    title = "Bars: ratio of minima, the worst of all functions"
    csv = csv_path, partial(write_csv, results=results, gpu=gpu)
    return conclude(out, title, judged, measured, csv)


def _time_all(settings: Settings, results: Results, stopwatch: Stopwatch, rounds: int) -> None:
    todo = list(itertools.product(settings.dtypes, sorted(settings.sizes), settings.functions))
    with progress_bar() as bar:
        task = bar.add_task("timing", total=len(todo))
        for dtype, size, name in todo:
            bar.update(task, description=f"{name}, {dtype}, {size_name(size)}")
            time_function(results, name, dtype, size, stopwatch, rounds)
            bar.update(task, advance=1)


def _print_table(out: Console, results: Results, dtype: str, size: int, gpu: Device) -> None:
    mine = [k for k in results.timings if (k.table, k.dtype, k.size) == (FAMILY, dtype, size)]
    if not mine:
        return
    place = "within the L2 cache" if _fits(size, dtype, gpu) else "beyond the L2 cache"
    copies = [t for k in mine if k.case == COPY and (t := speed(results, k)) is not None]
    title = f"{dtype}, {size_name(size)} elements, {place}; copy {significant(max(copies))} GB/s"
    columns = ("", "ns", "GB/s", "of copy", "÷relu", "torch÷", "compile÷", "paper")
    grid = table(title, columns)
    for name in dict.fromkeys(key.function for key in mine):
        grid.add_row(name)
        for case in BODIES:
            key = Key(name, dtype, case, size, OURS)
            if key in results.timings:
                grid.add_row(f"  {case}", *_cells(results, key))
    out.print(grid)


def _fits(size: int, dtype: str, gpu: Device) -> bool:
    """Whether an input and its result fit the cache."""
    return 2 * size * DTYPES[dtype].itemsize <= gpu.cache


def _cells(results: Results, key: Key) -> Iterator[str]:
    timing = results.timings[key]
    figures = (significant(t / key.size) for t in (timing.min, timing.median))
    yield "/".join(figures) + "!" * timing.is_late
    yield _figure(speed(results, key), "", significant)
    yield _figure(share_of_copy(results, key), "", "{:.0%}".format)
    yield _figure(results.ratio(key, key._replace(contender=RELU)))
    has_twin = results.find(key._replace(contender=TWIN)) is not None
    theirs = key._replace(contender=TWIN if has_twin else EXPRESSION)
    is_torchs = key.function in PEERS
    yield _figure(results.ratio(theirs, key), "" if is_torchs else "*")
    compiled = key._replace(contender=COMPILED)
    yield _figure(results.ratio(compiled, key), "" if is_torchs else "*")
    yield _figure(results.rooflines.get((key.function, BODIES[key.case], key.dtype)))


def _figure(
    value: float | None, mark: str = "", form: Callable[[float], str] = "{:.2f}".format
) -> str:
    return NONE if value is None else form(value) + mark


# ---- the bars ------------------------------------------------------------------------------------


class WorstRatio(NamedTuple):
    """How one case should compare over all functions, at the largest size."""

    case: str
    dtype: str
    contender: str
    limit: float
    """At most this many times the contender's time."""

    def verdict(self, results: Results) -> Verdict:
        """The verdict on the worst function."""
        ratios: Mapping[str, float] = dict(self._ratios(results))
        claim = f"{self.dtype}, {self.case}: over {WORDS[self.contender]}"
        bar = f"≤ {self.limit:g}×"
        if not ratios:
            return Verdict(claim, bar, "not measured", None)
        worst = max(ratios, key=lambda name: ratios[name])
        return Verdict(claim, bar, f"{ratios[worst]:.2f}× ({worst})", ratios[worst] <= self.limit)

    def _ratios(self, results: Results) -> Iterator[tuple[str, float]]:
        keys = [k for k in results.timings if (k.table, k.dtype) == (FAMILY, self.dtype)]
        largest = max((key.size for key in keys), default=0)
        for key in keys:
            if (key.case, key.contender, key.size) != (self.case, OURS, largest):
                continue
            ratio = results.ratio(key, key._replace(contender=self.contender))
            if ratio is not None:
                yield key.function, ratio


WORDS = {RELU: "torch's ReLU", TWIN: "torch's own", COMPILED: "torch.compile of torch's own"}
_LIMITS = {FORWARD: 1.1, PACKED: 1.15, BACKWARD: 1.1, FROM_OUTPUT: 1.25}
"""Relative to ReLU. Where arithmetic hides behind memory, only a side's bytes and noise are left;
the gradient from the output of a 16-bit type is the one that may not hide (see `paper.BARS`).
"""
BARS = tuple(
    bar
    for dtype in _paper.DTYPES
    for bar in (
        *(WorstRatio(case, dtype, RELU, limit) for case, limit in _LIMITS.items()),
        *(WorstRatio(case, dtype, TWIN, 1.05) for case in (FORWARD, BACKWARD, DOUBLE)),
        *(WorstRatio(case, dtype, COMPILED, 1.1) for case in (FORWARD, BACKWARD)),
    )
)
"""Aims: no GPU has been measured against them yet."""


def verdicts(results: Results) -> Iterator[Verdict]:
    """Every bar on times, followed by those on errors."""
    for bar in BARS:
        yield bar.verdict(results)
    yield from published_gpu.verdicts(results)


def write_csv(path: Path, results: Results, gpu: Device) -> None:
    """One row per timing, in nanoseconds per call; a cell is empty if a figure does not apply."""
    made_by = {
        "device": gpu.name,
        "target": gpu.target,
        "software": gpu.software,
        "torch": torch.__version__,
        "mishkit": mk.__version__,
    }
    statistics = ("samples", "late", "min", "median", "mean", "std", "max")
    rates = ("ns_per_element", "gb_per_s", "share_of_copy", "l2_error", "paper")
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow([*GPU_COLUMNS, *statistics, *rates, *made_by])
        for key, timing in results.timings.items():
            figures = (timing.min, timing.median, timing.mean, timing.std, max(timing.samples))
            row: list[float | None] = [timing.min / key.size, None, None, None, None]
            if key.table == FAMILY:
                row[1:3] = speed(results, key), share_of_copy(results, key)
            row[3] = results.errors.get(key)
            if key.table == FAMILY and key.contender == OURS:
                row[4] = results.rooflines.get((key.function, BODIES[key.case], key.dtype))
            numbers = ("" if f is None else f"{f:.6g}" for f in (*figures, *row))
            counts = len(timing.samples), timing.late
            writer.writerow([*key.columns(GPU_COLUMNS), *counts, *numbers, *made_by.values()])
