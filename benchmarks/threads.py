"""What further threads cost, and from how many elements on the kernels use them.

    python benchmarks/threads.py            # half a minute

The table is of calls with out=, in µs: the minima with one thread and with all, for mishkit and for
torch. float32 unless a row says otherwise. *cost* is what all threads take longer than their share
of the time of one; a row has it where they are used.

The last lines are the cost of a parallel region of torch without any work: one after another, and
after a pause, in which the threads may fall asleep. In calls the data move to other caches as well.
`thread_ns` in csrc/bind/operands.h is the cost that the kernels reckon with.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import mishkit as mk
from mishkit.lab.bench.cases import PEERS, normal
from mishkit.lab.common.formats import significant, size_name
from mishkit.lab.common.timing import Call, round_robin

THREADS = torch.get_num_threads()
SIZES = tuple(1 << exponent for exponent in range(13, 19))
ROWS = (
    ("relu", torch.float32),
    ("relu", torch.bfloat16),
    ("hardswish", torch.float32),
    ("mish", torch.float32),
    ("mish", torch.float64),
)
SECONDS = 0.6
PAUSE = 0.01


def region() -> Callable[[], Any]:
    """A call of torch's parallel_for whose work is a function of C that does nothing."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    parallel_for = ctypes.CDLL(str(library)).torch_parallel_for
    parallel_for.argtypes = (*[ctypes.c_int64] * 3, ctypes.c_void_p, ctypes.c_void_p)
    nothing = ctypes.cast(ctypes.CDLL(None).labs, ctypes.c_void_p)
    return partial(parallel_for, 0, THREADS, 1, nothing, None)


def of_regions() -> Iterator[tuple[str, float]]:
    """Nanoseconds that a region takes longer than a call that stays in one thread."""
    run = region()
    pause = partial(time.sleep, PAUSE)
    for name, prepare, most in (("one after another", None, 200), ("after a pause", pause, 1)):
        calls = {count: Call(run, partial(ready, count, prepare), most) for count in (1, THREADS)}
        times = round_robin(calls, seconds=2)
        yield name, times[THREADS].median - times[1].median


def ready(threads: int, pause: Callable[[], None] | None = None) -> None:
    """Set the number of threads, and pause."""
    torch.set_num_threads(threads)
    if pause:
        pause()


def of_calls(name: str, dtype: torch.dtype, size: int) -> list[float]:
    """Minima in µs: mishkit's with one thread and with all, and torch's."""
    x = normal(size, dtype, seed=0)
    out = torch.empty_like(x)
    ours, torchs = mk.functional.FUNCTIONS[name], PEERS[name].out
    assert torchs is not None
    calls = {
        (function, threads): Call(
            partial(function, x, out=out), prepare=partial(ready, threads), most_calls=100
        )
        for function in (ours, torchs)
        for threads in (1, THREADS)
    }
    return [timing.min / 1000 for timing in round_robin(calls, seconds=SECONDS).values()]


def main() -> None:
    """Print a row for each function and size, and what regions cost."""
    out = Console(highlight=False)
    heads = (
        "",
        "elements",
        "1 thread",
        f"{THREADS} threads",
        "cost",
        "torch, 1",
        f"torch, {THREADS}",
    )
    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for name, dtype in ROWS:
        label = name if dtype == torch.float32 else f"{name}, {dtype}".replace("torch.", "")
        for size in SIZES:
            single, shared, *torchs = of_calls(name, dtype, size)
            cost = shared - single / THREADS
            row = single, shared, cost if shared < 0.9 * single else math.nan, *torchs
            table.add_row(label, size_name(size), *map(significant, row))
    out.print(table)
    for name, cost in of_regions():
        out.print(f"An empty region of {THREADS} threads, {name}: {cost / 1000:.2f} µs")


if __name__ == "__main__":
    main()
