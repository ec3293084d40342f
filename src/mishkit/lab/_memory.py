"""Resident memory and page faults, as the system counts them."""

from __future__ import annotations

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
