"""`mishkit bench --neuron`: the APTx layer next to its formula in plain torch, and a linear layer.

The layer has 784 inputs and 128 outputs, batch 256, float32; its input requires grad, as inside a
network. Three cases are timed round-robin, with one thread and with all threads: forward, backward
on a retained graph, and both. torch.compile compiles once per number of threads, outside the
timing.

Memory is that of one forward and backward pass beyond the parameters and the input, with all
results alive at the end, and each contender in a separate process. Two figures are given: the peak
that torch's allocator hands out, including scratch memory; and, on Linux, the peak growth of the
process's resident memory, which includes every allocation, whether torch's or not.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import mishkit as mk
from mishkit.backends import cpu

from .. import LabError
from ..common.bars import Interruptible, Verdict, conclude, console, progress_bar, table
from ..common.environment import processor, warn_of_load
from ..common.formats import NONE, significant, threads_name
from ..common.memory import grown_by
from ..common.timing import Call, round_robin, torch_threads
from .cpu_bars import Bar
from .results import Key, Results, write_csv
from .settings import QUICK

BATCH, IN, OUT = 256, 784, 128
SECONDS = 12.0
"""Seconds of timing for one number of threads."""

OURS, PLAIN, COMPILED, LINEAR = "mishkit", "plain torch", "torch.compile", "Linear"
CONTENDERS = (OURS, PLAIN, COMPILED, LINEAR)
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward and backward"
CASES = (FORWARD, BACKWARD, BOTH)

FASTER = {PLAIN: 15.0, COMPILED: 3.0}
"""How many times faster forward and backward together should be."""
LEANER = 50.0
"""How many times less memory than plain torch they should take."""


class PlainLayer(mk.APTxLayer):
    """The layer as published: one expression, which holds batch × out × in elements."""

    def forward(self, input: Tensor) -> Tensor:
        x = input.unsqueeze(1)
        y = ((self.alpha + torch.tanh(self.beta * x)) * self.gamma * x).sum(2)
        return y if self.delta is None else y + self.delta


@dataclass(frozen=True)
class Layer:
    """A layer and its input, with the same numbers on every call."""

    batch: int
    input: int
    output: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def contender(self, name: str) -> tuple[Callable[[Tensor], Tensor], list[nn.Parameter]]:
        """A layer to call, and its parameters."""
        torch.manual_seed(0)
        kinds = {OURS: mk.APTxLayer, PLAIN: PlainLayer, COMPILED: PlainLayer, LINEAR: nn.Linear}
        module = kinds[name](self.input, self.output).to(self.device, self.dtype)
        call: Any = torch.compile(module) if name == COMPILED else module
        return call, list(module.parameters())

    def tensors(self) -> tuple[Tensor, Tensor]:
        """An input, and a gradient of the output."""
        generator = torch.Generator().manual_seed(1)
        shapes = (self.batch, self.input), (self.batch, self.output)
        x, g = (torch.randn(shape, generator=generator) for shape in shapes)
        x, g = (t.to(self.device, self.dtype) for t in (x, g))
        return x.requires_grad_(), g

    def pass_of(self, name: str) -> Callable[[], Any]:
        """One forward and backward pass; it returns everything it has made."""
        call, parameters = self.contender(name)
        x, g = self.tensors()

        def both() -> Any:
            y = call(x)
            return y, torch.autograd.grad(y, [x, *parameters], g)

        return both


def layer() -> Layer:
    """The layer that is timed on the CPU."""
    return Layer(BATCH, IN, OUT)


# ---- time ----------------------------------------------------------------------------------------


def key(case: str, contender: str, threads: int) -> Key:
    """The key of one timing."""
    return Key("aptx_layer", "float32", case, BATCH * OUT * IN, contender, threads)


def calls(names: tuple[str, ...]) -> dict[tuple[str, str], Call]:
    """All calls that are timed round-robin, compiled."""
    subject = layer()
    x, g = subject.tensors()
    timed: dict[tuple[str, str], Call] = {}
    for name in names:
        call, parameters = subject.contender(name)
        leaves = [x, *parameters]
        y = call(x)

        def backward(y: Tensor = y, leaves: list[Tensor] = leaves) -> Any:  # type: ignore[assignment]
            return torch.autograd.grad(y, leaves, g, retain_graph=True)

        backward()
        timed[FORWARD, name] = Call(lambda call=call: call(x))  # type: ignore[misc]
        timed[BACKWARD, name] = Call(backward)
        timed[BOTH, name] = Call(subject.pass_of(name))
        timed[BOTH, name].run()
    return timed


def time_all(threads: int, seconds: float, names: tuple[str, ...] = CONTENDERS) -> Results:
    """Nanoseconds per element of batch × out × in, with this many threads."""
    torch.compiler.reset()  # code is compiled for a specific number of threads
    with torch_threads(threads):
        timings = round_robin(calls(names), seconds=seconds)
    results = Results()
    for (case, name), timing in timings.items():
        timing_key = key(case, name, threads)
        timing.samples = [sample / timing_key.size for sample in timing.samples]
        results.timings[timing_key] = timing
    return results


# ---- memory --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """The peak of one pass, in bytes."""

    allocated: int
    """Counted by torch's allocator."""
    resident: int | None
    """Growth of the process; None if the system does not report it."""


def memory_of(name: str) -> Memory:
    """Measured in a separate process, where nothing else has allocated before."""
    # Freed memory goes back to the system at once, so that no reuse goes unnoticed.
    small = str(1 << 16)
    tuned = {"MALLOC_MMAP_THRESHOLD_": small, "MALLOC_TRIM_THRESHOLD_": small}
    code = f"from mishkit.lab.bench import neuron; neuron.print_memory({name!r})"
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, env={**os.environ, **tuned}, capture_output=True, text=True)
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no output"])[-1]
        raise LabError(f"measuring the memory of {name} failed: {last}")
    return Memory(**json.loads(process.stdout.splitlines()[-1]))


def print_memory(name: str) -> None:
    """The part of `memory_of` that runs in the other process."""
    run_passes = layer().pass_of(name)
    run_passes()  # compiles, starts threads, loads code
    figures = {"allocated": allocated_by(run_passes), "resident": grown_by(run_passes)}
    print(json.dumps(figures))


def allocated_by(run: Callable[[], Any]) -> int:
    """The peak bytes that torch's allocator hands out."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = run()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    del results
    return max(itertools.accumulate(event.nbytes() for event in events), default=0)


# ---- the command ---------------------------------------------------------------------------------


def main(quick: bool = False, csv_path: Path | None = None) -> int:
    """Time, measure, print tables and bars, write the times; returns 1 if a bar is missed."""
    out = console()
    out.print(
        f"mishkit {mk.__version__} ({cpu.isa()}), torch {torch.__version__}, {processor()}\n"
        f"APTxLayer({IN}, {OUT}), batch {BATCH}, float32: minimum/median in ms; ÷mishkit: times "
        "that of mishkit, by the minima."
    )
    warn_of_load(out)
    results, memories = Results(), dict[str, Memory]()
    threads = sorted({1, torch.get_num_threads()})
    with Interruptible(out) as measured:
        _measure(threads, quick, results, memories)
    for count in threads:
        _print_times(out, results, count)
    _print_memories(out, memories)
    judged = [*time_verdicts(results, threads), *memory_verdicts(memories)]
    csv = csv_path, partial(write_csv, results=results)
    return conclude(out, "Bars: ratio of minima (of medians)", judged, measured, csv)


def _measure(
    threads: list[int],
    quick: bool,
    results: Results,
    memories: dict[str, Memory],
) -> None:
    with progress_bar() as bar:
        task = bar.add_task("", total=len(CONTENDERS) + 4 * len(threads))
        for count in threads:
            bar.update(task, description=f"compiling and timing, threads: {count}")
            timed = time_all(count, SECONDS * (QUICK if quick else 1))
            results.timings.update(timed.timings)
            bar.update(task, advance=4)
        for name in CONTENDERS:
            bar.update(task, description=f"memory of {name}")
            memories[name] = memory_of(name)
            bar.update(task, advance=1)


def _print_times(out: Console, results: Results, threads: int) -> None:
    columns = ["layer"]
    for case in CASES:
        columns += [case, "÷mishkit"]
    grid = table(threads_name(threads), columns)
    for name in CONTENDERS:
        cells = (cell for case in CASES for cell in _cells(results, key(case, name, threads)))
        grid.add_row(name, *cells)
    out.print(grid)


def _cells(results: Results, timing_key: Key) -> Iterator[str]:
    timing = results.find(timing_key)
    ratio = results.ratio(timing_key, timing_key._replace(contender=OURS))
    if timing is None:
        yield NONE
    else:
        figures = (significant(t * timing_key.size / 1e6) for t in (timing.min, timing.median))
        yield "/".join(figures)
    yield NONE if ratio is None else significant(ratio)


def _print_memories(out: Console, memories: dict[str, Memory]) -> None:
    grid = table(
        "Peak memory of forward and backward, MB", ["layer", "allocated by torch", "resident"]
    )
    for name, memory in memories.items():
        resident = NONE if memory.resident is None else significant(memory.resident / 1e6)
        grid.add_row(name, significant(memory.allocated / 1e6), resident)
    out.print(grid)


def time_verdicts(results: Results, threads: list[int]) -> Iterator[Verdict]:
    """Forward and backward, compared with plain torch and the compiler."""
    for count, (name, limit) in itertools.product(threads, FASTER.items()):
        claim = f"{BOTH}, threads: {count}: faster than {name}"
        above, below = (key(BOTH, contender, count) for contender in (name, OURS))
        yield Bar(claim, above, below, limit, at_least=True).verdict(results)


def memory_verdicts(memories: dict[str, Memory]) -> Iterator[Verdict]:
    """Compared with plain torch, by both ways of counting."""
    for counter, name in (("allocated", "allocated by torch"), ("resident", "resident")):
        claim, bar = f"peak memory, {name}: less than plain torch's", f"≥ {LEANER:g}×"
        plain, ours = (getattr(memories.get(n), counter, None) for n in (PLAIN, OURS))
        if plain is None or ours is None:
            yield Verdict(claim, bar, "not measured", None)
        else:
            yield Verdict(claim, bar, f"{plain / ours:.3g}×", plain >= LEANER * ours)
