"""What fresh memory from the system costs, and what can be done about it.

    python benchmarks/fresh.py              # about a minute

Computes 16 Mi float32 numbers (64 MB) into existing memory, over the input, and into fresh memory
with and without huge pages. Settings that only take effect when a process starts are measured in
separate processes, by turns. One thread. Prints the minimum and median processor time in ns per
element, and the page faults of a call.
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
"""Environments: mishkit's huge pages, no huge pages, and those of torch's allocator."""


def calls() -> dict[str, Callable[[], Any]]:
    """What is timed in every environment."""
    x = torch.randn(SIZE)
    out, overwritten = torch.empty_like(x), x.clone()
    return {
        "mish, out=": lambda: mk.mish(x, out=out),
        "mish, in place": lambda: mk.mish(overwritten, inplace=True),
        "mish, fresh": lambda: mk.mish(x),
        "torch relu, fresh": lambda: F.relu(x),
        "torch mish, fresh": lambda: F.mish(x),
    }


def measure() -> dict[str, tuple[list[float], int]]:
    """Samples in ns per element, and page faults, in this process."""
    torch.set_num_threads(1)
    timed = {name: Call(run, most_calls=1) for name, run in calls().items()}
    timings = round_robin(timed, seconds=SECONDS, clock=PROCESSOR)
    return {
        name: ([sample / SIZE for sample in timing.samples], page_faults(timed[name].run))
        for name, timing in timings.items()
    }


def main() -> None:
    """Measure by turns, and print a row for each call and environment."""
    if sys.argv[1:] == ["--part"]:
        print(json.dumps(measure()))
        return
    measured: dict[tuple[str, str], tuple[list[float], int]] = {}
    for _ in range(ROUNDS):
        for turn, settings in TURNS.items():
            part = subprocess.run(
                [sys.executable, __file__, "--part"],
                env={**os.environ, **settings},
                stdout=subprocess.PIPE,
                check=True,
            )
            for name, (samples, faults) in json.loads(part.stdout).items():
                earlier, _ = measured.get((name, turn), ([], 0))
                measured[name, turn] = [*earlier, *samples], faults
    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(("16 Mi float32", "environment", "min, ns", "median", "faults")):
        table.add_column(head, justify="right" if number > 1 else "left", no_wrap=True)
    for (name, turn), (samples, faults) in sorted(measured.items(), key=lambda item: item[0][0]):
        timing = Timing(samples)
        table.add_row(name, turn, f"{timing.min:.3f}", f"{timing.median:.3f}", f"{faults:,}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
