"""How the programs of this folder measure their steps.

One thread; the processor time of this process, and on Linux the resident memory that the steps
add. The first steps, which fill caches and pools, don't count.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from mishkit._torchvision import mend_torchvision

mend_torchvision()  # so that a torchvision for another torch can be imported; changes nothing else
torch.manual_seed(0)
torch.set_num_threads(1)
WARM = 2
STATUS = Path("/proc/self/status")


def _memory(field: str) -> int:
    """A field of the process's status, in KiB; 0 where there is none."""
    if not STATUS.exists():
        return 0
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0])


class Steps:
    """The times between `end`s, and the memory added since it was made; prints them as JSON."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.before = _memory("VmRSS")
        self.last = time.process_time()
        self.loss = float("nan")

    def end(self, loss: float | None = None) -> None:
        """A step has ended, with this loss."""
        now = time.process_time()
        self.seconds.append(now - self.last)
        self.last = now
        if loss is not None:
            self.loss = loss

    def report(self) -> None:
        """Print the result, in the last line."""
        added = _memory("VmHWM") - self.before
        seconds = self.seconds[WARM:]
        print(json.dumps({"seconds": seconds, "added": added * 1024, "loss": self.loss}))
