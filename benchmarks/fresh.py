"""What memory costs that comes fresh from the system, and what may be done about it.

    python benchmarks/fresh.py              # about a minute

A result of 16 Mi float32 numbers, 64 MB, into memory that is there, over the input, and into fresh
memory with and without huge pages. Settings that count from the start of a process are measured in
processes of their own, in turns. One thread; nanoseconds an element by the processor's time, the
minimum and the median; page faults of a call.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import mishkit as mk
from mishkit.lab.common.memory import page_faults
from mishkit.lab.common.timing import PROCESSOR, Call, Timing, round_robin

SIZE = 1 << 24
SECONDS = 3.0
ROUNDS = 3
TURNS: dict[str, dict[str, str]] = {
    "as it is": {},
    "MISHKIT_HUGE_PAGES=0": {"MISHKIT_HUGE_PAGES": "0"},
    "THP_MEM_ALLOC_ENABLE=1": {"THP_MEM_ALLOC_ENABLE": "1"},
}
"""Environments: with mishkit's huge pages, without any, and with those of torch's allocator."""


def calls() -> dict[str, Callable[[], Any]]:
    """What is timed in every environment."""
    x = torch.randn(SIZE)
    out, over = torch.empty_like(x), x.clone()
    return {
        "mish, out=": lambda: mk.mish(x, out=out),
        "mish, in place": lambda: mk.mish(over, inplace=True),
        "mish, fresh": lambda: mk.mish(x),
        "torch relu, fresh": lambda: F.relu(x),
        "torch mish, fresh": lambda: F.mish(x),
    }


def measure() -> dict[str, tuple[list[float], int]]:
    """Samples in ns an element, and page faults, in this process."""
    torch.set_num_threads(1)
    made = {name: Call(run, most_calls=1) for name, run in calls().items()}
    timings = round_robin(made, seconds=SECONDS, clock=PROCESSOR)
    return {
        name: ([sample / SIZE for sample in timing.samples], page_faults(made[name].run))
        for name, timing in timings.items()
    }


def main() -> None:
    """Measure in turns, and print a row a call and environment."""
    if sys.argv[1:] == ["--part"]:
        print(json.dumps(measure()))
        return
    found: dict[tuple[str, str], tuple[list[float], int]] = {}
    for _ in range(ROUNDS):
        for turn, settings in TURNS.items():
            done = subprocess.run(
                [sys.executable, __file__, "--part"],
                env={**os.environ, **settings},
                stdout=subprocess.PIPE,
                check=True,
            )
            for name, (samples, faults) in json.loads(done.stdout).items():
                before, _ = found.get((name, turn), ([], 0))
                found[name, turn] = [*before, *samples], faults
    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(("16 Mi float32", "environment", "min, ns", "median", "faults")):
        table.add_column(head, justify="right" if number > 1 else "left", no_wrap=True)
    for (name, turn), (samples, faults) in sorted(found.items(), key=lambda item: item[0][0]):
        timing = Timing(samples)
        table.add_row(name, turn, f"{timing.min:.3f}", f"{timing.median:.3f}", f"{faults:,}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
