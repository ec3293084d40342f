"""What `make gpu` asks of a GPU, in one place, and a pretended one for dry runs.

Nothing else in these benchmarks calls `torch.cuda`. So a dry run goes the same way as a real one,
but for the answers of this file.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

COMPILERS = ("cc", "gcc", "clang")
"""What Triton looks for, unless `CC` names one."""
OLDEST_TORCH = (2, 10)


class NoGPUError(Exception):
    """Why nothing can be run here, in one line."""


class Event(Protocol):
    """A point on a stream, with the time at which it was reached."""

    def record(self) -> None: ...
    def query(self) -> bool: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, end: Any) -> float: ...


class Machine(Protocol):
    """A device, its clock and its memory."""

    device: str
    is_dry: bool

    def check(self) -> None:
        """Raise `NoGPUError` if nothing can run here."""

    def facts(self) -> dict[str, Any]:
        """What results depend on."""

    def event(self) -> Event:
        """An event that takes the time."""

    def wait(self) -> None:
        """Wait until all that was queued has run."""

    def allocated(self) -> int:
        """Bytes that tensors hold."""

    def start_peak(self) -> None:
        """Begin to look for the most bytes that tensors hold."""

    def peak(self) -> int:
        """The most bytes that tensors held since then."""

    def free(self) -> None:
        """Give unused memory back."""

    def compile(self, function: Any) -> Any:
        """torch.compile, for the shapes that it is called with."""


class NvidiaGPU:
    """The current CUDA device."""

    device = "cuda"
    is_dry = False

    def check(self) -> None:
        """Raise `NoGPUError` if nothing can run here."""
        found = tuple(int(part) for part in torch.__version__.split(".")[:2])
        if found < OLDEST_TORCH:
            raise NoGPUError(f"torch {torch.__version__} is older than 2.10")
        if torch.version.cuda is None:
            raise NoGPUError(f"this torch, {torch.__version__}, is built without CUDA")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            there = torch.cuda.is_available()
        reasons = [str(warning.message).splitlines()[0] for warning in said]
        if not there:  # for example a driver that is too old, which torch says in a warning
            raise NoGPUError("; ".join(["torch finds no GPU", *reasons]))
        try:
            torch.zeros(1, device=self.device).add_(1).cpu()
        except RuntimeError as error:  # for example a GPU that this build has no code for
            raise NoGPUError(f"the GPU does not compute: {first_line(error)}") from error

    def facts(self) -> dict[str, Any]:
        """What results depend on."""
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        free, total = torch.cuda.mem_get_info()
        return {
            "gpu": found.name,
            "target": f"sm_{found.major}{found.minor}",
            "processors": found.multi_processor_count,
            "memory": total,
            "free": free,
            "cache": found.L2_cache_size,
            "is_part": "MIG" in found.name,  # whose bandwidth is a share of the whole GPU's
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }

    def event(self) -> Event:
        """An event that takes the time."""
        return torch.cuda.Event(enable_timing=True)

    def wait(self) -> None:
        """Wait until all that was queued has run."""
        torch.cuda.synchronize()

    def allocated(self) -> int:
        """Bytes that tensors hold."""
        return torch.cuda.memory_allocated()

    def start_peak(self) -> None:
        """Begin to look for the most bytes that tensors hold."""
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """The most bytes that tensors held since then."""
        return torch.cuda.max_memory_allocated()

    def free(self) -> None:
        """Give unused memory back."""
        torch.cuda.empty_cache()

    def compile(self, function: Any) -> Any:
        """torch.compile, for the shapes that it is called with."""
        return torch.compile(function, dynamic=False)


class _Clock:
    """An event of the processor's clock; what is queued has run at once."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: _Clock) -> float:
        return (end.seconds - self.seconds) * 1e3


class PretendedGPU:
    """This machine's processor in a GPU's stead: its figures mean nothing."""

    device = "cpu"
    is_dry = True

    def check(self) -> None:
        """A processor is always there."""

    def facts(self) -> dict[str, Any]:
        """What results would depend on."""
        return {
            "gpu": "none (dry run)",
            "target": "none",
            "processors": os.cpu_count(),
            "memory": 0,
            "free": 0,
            "cache": 1 << 20,
            "is_part": False,
            "cuda": None,
            "cudnn": None,
            "driver": None,
        }

    def event(self) -> Event:
        """An event of the processor's clock."""
        return _Clock()

    def wait(self) -> None:
        """All that was queued has run."""

    def allocated(self) -> int:
        """Of a processor torch does not tell."""
        return 0

    def start_peak(self) -> None:
        """There is nothing to begin."""

    def peak(self) -> int:
        """The most that the process has held, in place of tensors."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def free(self) -> None:
        """Nothing is unused."""

    def compile(self, function: Any) -> Any:
        """torch.compile without its compiler, which would take minutes."""
        return torch.compile(function, dynamic=False, backend="eager")


def machine(is_dry: bool) -> Machine:
    """The GPU, or what stands in for it in a dry run."""
    return PretendedGPU() if is_dry else NvidiaGPU()


def first_line(error: BaseException) -> str:
    """An error in one line: its class and the first line that says anything."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'without a word'}"[:400]


def _driver() -> str | None:
    """The driver's version, as nvidia-smi says it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.strip().splitlines()[0] if said.strip() else None


# ---- Triton --------------------------------------------------------------------------------------


def what_triton_lacks() -> str:
    """What Triton needs for its launchers and this machine has not; empty if nothing is missing."""
    named = os.environ.get("CC", "")
    if not any(map(shutil.which, (named,) if named else COMPILERS)):
        return "there is no C compiler: install gcc, or name one by CC"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        return f"there is no {header}, which comes with the package python3-dev"
    return ""


def seconds_of(run: Callable[[], Any], on: Machine) -> float:
    """Wall time of one call and what it queued."""
    on.wait()
    start = time.perf_counter()
    run()
    on.wait()
    return time.perf_counter() - start


def without_triton() -> None:
    """Let mishkit compute with plain torch; to be called before it is imported."""
    sys.modules["triton"] = None  # type: ignore[assignment]
