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


def calls(of: Layer, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, str], Call]]:
    """Calls by case and contender."""
    x, g = of.tensors()
    for name in names:
        call, parameters = of.contender(name)
        leaves, kept = [x, *parameters], list[Any]()

        def backward(call: Any = call, leaves: list[Any] = leaves, kept: list[Any] = kept) -> Any:
            if not kept:
                kept.append(call(x))
            return torch.autograd.grad(kept[0], leaves, g, retain_graph=True)

        yield (FORWARD, name), Call(lambda call=call: call(x))  # type: ignore[misc]
        yield (BACKWARD, name), Call(backward)
        yield (BOTH, name), Call(of.pass_of(name))


def memory_of(of: Layer, name: str) -> int:
    """Peak bytes beyond the parameters and the input."""
    both = of.pass_of(name)
    both()  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = both()
    del kept
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
    of, what = layer(shape, dtype), f"{LAYER} {tuple(shape)}, {dtype}"
    names: tuple[str, ...] = CONTENDERS
    if shape.terms > FITS:
        names = tuple(name for name in names if name not in (PLAIN, COMPILED))
    try:
        made = working(calls(of, names), results.missing, what)
        for name in dict.fromkeys(name for _, name in made):
            memories[shape, dtype, name] = memory_of(of, name)
        timings = stopwatch.time(made, rounds=rounds, warm=WARM_ROUNDS)
    except torch.OutOfMemoryError:
        results.missing.append(f"{what}: the GPU's memory does not suffice")
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
    found = list(verdicts(results, memories))
    return finish(out, results, found, measured, gpu, csv_path)


def head(gpu: Device) -> str:
    """What is timed, and with what."""
    who = "\n".join(head_lines(gpu, DTYPES))
    return (
        f"{who}\nTimes by events on the current stream, the caches flushed before each: "
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
    made = table(title, [*columns, "memory"])
    for name in names:
        cells = []
        for case in CASES:
            of = key(shape, dtype, case, name)
            timing = results.timings.get(of)
            ratio = results.ratio(of, of._replace(contender=OURS))
            cells.append(NONE)
            if timing is not None:
                figures = (significant(t / 1e3) for t in (timing.min, timing.median))
                cells[-1] = "/".join(figures) + "!" * timing.is_late
            cells.append(NONE if ratio is None else significant(ratio))
        memory = memories.get((shape, dtype, name))
        made.add_row(name, *cells, NONE if memory is None else significant(memory / 1e6))
    out.print(made)


def verdicts(results: Results, memories: Memories) -> Iterator[Verdict]:
    """Like the CPU's bars, at its shape in float32; aims that no GPU was measured against yet."""
    shape, dtype = SHAPES[0], DTYPES[0]
    for name, limit in FASTER.items():
        above, below = (key(shape, dtype, BOTH, which) for which in (name, OURS))
        ratio = results.ratio(above, below)
        what, bar = f"{BOTH}: faster than {name}", f"≥ {limit:g}×"
        if ratio is None:
            yield Verdict(what, bar, "not measured", None)
        else:
            yield Verdict(what, bar, f"{ratio:.3g}×", ratio >= limit)
    plain, ours = (memories.get((shape, dtype, name)) for name in (PLAIN, OURS))
    what, bar = "peak memory: less than plain torch's", f"≥ {LEANER:g}×"
    if not plain or not ours:
        yield Verdict(what, bar, "not measured", None)
    else:
        yield Verdict(what, bar, f"{plain / ours:.3g}×", plain >= LEANER * ours)
