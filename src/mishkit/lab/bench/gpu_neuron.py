"""`mishkit bench --device cuda --neuron`: the APTx layer on a GPU.

The same layer and contenders as on the CPU (see `mishkit.lab.bench.neuron`), and a layer the size
of those in transformers, in float32, bfloat16 and float16. Memory is the peak that torch's
allocator hands out during a forward and backward pass, beyond what was there before, with all
results alive.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.text import Text

from ..common.bars import Interruptible, Verdict, console, table
from ..common.formats import NONE, significant
from ..common.gpu_timing import ROUNDS, WARM_ROUNDS, Stopwatch
from ..common.timing import Call
from .cases import working
from .gpu import QUICK_ROUNDS, finish, head_lines
from .gpu_device import DEVICE, Device, device
from .neuron import (
    BACKWARD,
    BOTH,
    CASES,
    COMPILED,
    CONTENDERS,
    FASTER,
    FORWARD,
    LEANER,
    OURS,
    PLAIN,
    Layer,
)
from .results import Key, Results

LAYER = "aptx_layer"
DTYPES = ("float32", "bfloat16", "float16")


class Shape(NamedTuple):
    """The sizes of a layer and its input."""

    batch: int
    input: int
    output: int

    @property
    def terms(self) -> int:
        """The number of terms of the layer's sums."""
        return self.batch * self.input * self.output


SHAPES = (Shape(256, 784, 128), Shape(2048, 1024, 1024))
FITS = 1 << 28
"""The most terms that plain torch is timed with: it holds several tensors of that many elements."""

Memories = dict[tuple[Shape, str, str], int]
"""Bytes, by shape, dtype and contender."""


def layer(shape: Shape, dtype: str) -> Layer:
    """The layer on the GPU."""
    return Layer(*shape, device=DEVICE, dtype=getattr(torch, dtype))


def calls(subject: Layer, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, str], Call]]:
    """Calls by case and contender."""
    x, g = subject.tensors()
    for name in names:
        call, parameters = subject.contender(name)
        leaves, outputs = [x, *parameters], list[Any]()

        def backward(
            call: Any = call, leaves: list[Any] = leaves, outputs: list[Any] = outputs
        ) -> Any:
            if not outputs:
                outputs.append(call(x))
            return torch.autograd.grad(outputs[0], leaves, g, retain_graph=True)

        yield (FORWARD, name), Call(lambda call=call: call(x))  # type: ignore[misc]
        yield (BACKWARD, name), Call(backward)
        yield (BOTH, name), Call(subject.pass_of(name))


def memory_of(subject: Layer, name: str) -> int:
    """Peak bytes beyond the parameters and the input."""
    run_passes = subject.pass_of(name)
    run_passes()  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = run_passes()
    del results
    return torch.cuda.max_memory_allocated() - before


def measure(
    results: Results,
    memories: Memories,
    shape: Shape,
    dtype: str,
    stopwatch: Stopwatch,
    rounds: int,
) -> None:
    """Measure all contenders at one shape; running out of memory adds a line to `missing`."""
    torch.compiler.reset()
    subject, label = layer(shape, dtype), f"{LAYER} {tuple(shape)}, {dtype}"
    names: tuple[str, ...] = CONTENDERS
    if shape.terms > FITS:
        names = tuple(name for name in names if name not in (PLAIN, COMPILED))
    try:
        working_calls = working(calls(subject, names), results.missing, label)
        for name in dict.fromkeys(name for _, name in working_calls):
            memories[shape, dtype, name] = memory_of(subject, name)
        timings = stopwatch.time(working_calls, rounds=rounds, warm=WARM_ROUNDS)
    except torch.OutOfMemoryError:
        results.missing.append(f"{label}: the GPU's memory does not suffice")
        return
    for (case, name), timing in timings.items():
        results.timings[key(shape, dtype, case, name)] = timing


def key(shape: Shape, dtype: str, case: str, contender: str) -> Key:
    """The key of one timing."""
    return Key(LAYER, dtype, case, shape.terms, contender, table="x".join(map(str, shape)))


# ---- the command ---------------------------------------------------------------------------------


def main(quick: bool = False, csv_path: Path | None = None) -> int:
    """Time, measure, print tables and bars, write the CSV; returns 1 if a bar is missed."""
    gpu, out = device(), console()
    results, memories = Results(), Memories()
    out.print(Text(head(gpu)))
    stopwatch = Stopwatch(DEVICE, gpu.cache)
    with Interruptible(out) as measured:
        for dtype in DTYPES:
            for shape in SHAPES:
                rounds = QUICK_ROUNDS if quick else ROUNDS
                measure(results, memories, shape, dtype, stopwatch, rounds)
    for dtype in DTYPES:
        for shape in SHAPES:
            _print_table(out, results, memories, shape, dtype)
    outcomes = list(verdicts(results, memories))
    return finish(out, results, outcomes, measured, gpu, csv_path)


def head(gpu: Device) -> str:
    """What is timed, and with what."""
    heading = "\n".join(head_lines(gpu, DTYPES))
    return (
        f"{heading}\nTimes by events on the current stream, the caches flushed before each: "
        "minimum/median in µs; ÷mishkit: times that\nof mishkit, by the minima; memory beyond the "
        "parameters and the input, in MB. !: the GPU may have waited for the host."
    )


def _print_table(
    out: Console, results: Results, memories: Memories, shape: Shape, dtype: str
) -> None:
    names = [name for name in CONTENDERS if key(shape, dtype, FORWARD, name) in results.timings]
    if not names:
        return
    columns = ["layer"]
    for case in CASES:
        columns += [f"{case}, µs", "÷mishkit"]
    title = f"{dtype}: APTxLayer({shape.input}, {shape.output}), batch {shape.batch}"
    grid = table(title, [*columns, "memory"])
    for name in names:
        cells = []
        for case in CASES:
            timing_key = key(shape, dtype, case, name)
            timing = results.timings.get(timing_key)
            ratio = results.ratio(timing_key, timing_key._replace(contender=OURS))
            cells.append(NONE)
            if timing is not None:
                figures = (significant(t / 1e3) for t in (timing.min, timing.median))
                cells[-1] = "/".join(figures) + "!" * timing.is_late
            cells.append(NONE if ratio is None else significant(ratio))
        memory = memories.get((shape, dtype, name))
        grid.add_row(name, *cells, NONE if memory is None else significant(memory / 1e6))
    out.print(grid)


def verdicts(results: Results, memories: Memories) -> Iterator[Verdict]:
    """The CPU's bars, at its shape in float32; no GPU has been measured against them yet."""
    shape, dtype = SHAPES[0], DTYPES[0]
    for name, limit in FASTER.items():
        above, below = (key(shape, dtype, BOTH, contender) for contender in (name, OURS))
        ratio = results.ratio(above, below)
        claim, bar = f"{BOTH}: faster than {name}", f"≥ {limit:g}×"
        if ratio is None:
            yield Verdict(claim, bar, "not measured", None)
        else:
            yield Verdict(claim, bar, f"{ratio:.3g}×", ratio >= limit)
    plain, ours = (memories.get((shape, dtype, name)) for name in (PLAIN, OURS))
    claim, bar = "peak memory: less than plain torch's", f"≥ {LEANER:g}×"
    if not plain or not ours:
        yield Verdict(claim, bar, "not measured", None)
    else:
        yield Verdict(claim, bar, f"{plain / ours:.3g}×", plain >= LEANER * ours)
