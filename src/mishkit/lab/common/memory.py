"""Resident memory and page faults, as counted by the system, and what the C library does with freed
memory.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


def grown_by(run: Callable[[], Any], repeats: int = 3) -> int | None:
    """The most bytes that resident memory grows by; the largest of several runs. None if the system
    does not report it.
    """
    growths = []
    for _ in range(repeats):
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            before = _status("VmRSS")
            results = run()
            growths.append(_status("VmHWM") - before)
        except (OSError, KeyError):
            return None
        del results
    return max(growths)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields[field].split()[0]) * 1024


def page_faults(run: Callable[[], Any]) -> int:
    """Pages that the system gave this process during a call; 0 if it does not report them."""
    if resource is None:
        return 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process, where nothing else has allocated before."""
    # Ctrl-C is handled by this process, which then ends the other.
    leave = signal.signal, (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.get_context("spawn").Pool(1, *leave) as pool:
        return pool.apply(function, arguments)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Values from glibc's malloc.h, where the names begin with M_."""


def keep_freed_memory() -> None:
    """Make the C library keep large freed blocks, if it has such a setting."""
    _mallopt(_TRIM_THRESHOLD, 1 << 30)
    _mallopt(_MMAP_THRESHOLD, 1 << 30)


def return_freed_memory() -> None:
    """Make the C library return large freed blocks to the system, so that what it would cache is
    not counted as the program's memory.
    """
    _mallopt(_MMAP_THRESHOLD, 1 << 16)


def _mallopt(parameter: int, value: int) -> None:
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(parameter, value)
