"""Resident memory and page faults, as the system counts them, and what the C library does with
freed memory."""

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
    """The most bytes that resident memory grows by; the largest of some runs. None where the system
    does not tell."""
    growths = []
    for _ in range(repeats):
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = _status("VmRSS")
            kept = run()
            growths.append(_status("VmHWM") - before)
        except (OSError, KeyError):
            return None
        del kept
    return max(growths)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields[field].split()[0]) * 1024


def page_faults(run: Callable[[], Any]) -> int:
    """Pages that the system gave this process during a call; 0 where it does not tell."""
    if resource is None:
        return 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """A call in a new process, where nothing else has allocated before."""
    # Ctrl-C is for this process to answer, which then ends the other.
    leave = signal.signal, (signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.get_context("spawn").Pool(1, *leave) as pool:
        return pool.apply(function, arguments)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""In glibc's malloc.h, with M_ before."""


def keep_freed_memory() -> None:
    """Have the C library keep large blocks for later, where it can be told so."""
    _mallopt(_TRIM_THRESHOLD, 1 << 30)
    _mallopt(_MMAP_THRESHOLD, 1 << 30)


def return_freed_memory() -> None:
    """Have it give large blocks back to the system once they are free: what it would keep for later
    is not the program's."""
    _mallopt(_MMAP_THRESHOLD, 1 << 16)


def _mallopt(parameter: int, value: int) -> None:
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(parameter, value)
