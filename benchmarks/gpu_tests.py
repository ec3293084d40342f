"""The tests marked gpu, as a stage of `make gpu`: each test is an item."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FIRST = ("tests/core/test_gpu.py", "tests/core/test_blend.py", "tests/lab")
"""The tests that only a GPU can pass; those of values follow for as long as there is time."""
REST = ("tests/core/test_values.py", "tests/core/test_layouts.py", "tests/core/test_affine.py")
DRY = ("tests/core/test_gpu.py",)


class Recorder:
    """Writes down each test, leaves out those that have passed, and stops in time."""

    def __init__(
        self, write: Callable[..., None], passed: set[str], until: float, dry: bool
    ) -> None:
        self.write, self.passed, self.until, self.dry = write, passed, until, dry
        self.reports: dict[str, Any] = {}

    @pytest.hookimpl(trylast=True)  # after what is not marked gpu was left out
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave out what has passed."""
        items[:] = [item for item in items if item.nodeid not in self.passed]
        if self.dry:
            del items[:-2]

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the call's outcome, or that of what failed before it."""
        if report.when == "call" or not report.passed:
            self.reports[report.nodeid] = report

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Write down the outcome of a test."""
        report = self.reports.pop(nodeid, None)
        if report is None:
            return
        if report.skipped:
            self.write(nodeid, skipped=str(report.longrepr[-1]))
        elif report.passed:
            self.write(nodeid, result={"seconds": round(report.duration, 2)})
        else:
            self.write(nodeid, error=str(report.longreprtext).strip()[-1500:])

    def pytest_collectreport(self, report: Any) -> None:
        """Write down a file that can't be collected, for instance for lack of a package."""
        if report.failed:
            self.write(report.nodeid, error=str(report.longrepr)[-1500:])

    def pytest_runtest_protocol(self, item: Any) -> None:
        """Stop in time."""
        if time.time() > self.until:
            item.session.shouldstop = "out of time"


def run(write: Callable[..., None], passed: set[str], until: float, dry: bool) -> None:
    """Run what is selected, until the time is over."""
    os.chdir(ROOT)
    paths = DRY if dry else (*FIRST, *REST)
    options = ["-m", "gpu and not slow", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    recorder = Recorder(write, passed, until, dry)
    status = pytest.main([*options, *paths], plugins=[recorder])
    if status == pytest.ExitCode.INTERRUPTED or time.time() > until:
        write("the rest", skipped="out of time")
