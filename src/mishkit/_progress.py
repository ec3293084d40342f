"""Show how far a long task has got: one line on stderr, on terminals only.

    with progress("mishkit.audit", steps=2):
        step("forward pass")
        …
        step("with checkpoints")
        …

The line appears after `DELAY` seconds and goes away at the end. ``MISHKIT_PROGRESS=0`` turns it
off.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import get_terminal_size

DELAY = 2.0
"""Seconds before the line appears."""
EVERY = 0.2
"""Seconds between two drawings."""
VARIABLE = "MISHKIT_PROGRESS"
_WIDTH = 20
_CLEAR = "\r\x1b[K"


class _Task:
    """What is going on, and the thread that draws it."""

    def __init__(self, title: str) -> None:
        self.title, self.doing = title, ""
        self.steps = 0
        self.begun = 0
        """The number of steps that have begun; all but the last are done."""
        self._since = time.monotonic()
        self._ended = threading.Event()
        self._is_drawn = False
        self._thread: threading.Thread | None = None

    def show(self) -> None:
        """Begin to draw, once it has taken long enough."""
        self._thread = threading.Thread(target=self._draw, name="mishkit-progress", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Take the line away."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _draw(self) -> None:
        pause = DELAY
        while not self._ended.wait(pause):
            self._is_drawn, pause = True, EVERY
            sys.stderr.write(f"\r{self.line()[: get_terminal_size().columns - 1]}\x1b[K")
            sys.stderr.flush()
        self.clear()

    def clear(self) -> None:
        """Take the line away, until it is drawn again."""
        if self._is_drawn:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()

    def line(self) -> str:
        """The title, a bar, the current step and the time so far."""
        steps, done = max(self.steps, self.begun), max(self.begun - 1, 0)
        filled = _WIDTH * done // max(steps, 1)
        bar = "█" * filled + "░" * (_WIDTH - filled)
        seconds = int(time.monotonic() - self._since)
        return f"{self.title} {bar} {done}/{steps} {self.doing}, {seconds} s"


class _Current(threading.local):
    task: _Task | None = None


_current = _Current()


@contextmanager
def progress(title: str, steps: int) -> Iterator[None]:
    """Show how far the block has got, which announces its steps by `step`.

    Within another such block of the same thread, the steps are added to the outer one's.
    """
    outer = _current.task
    if outer is not None:
        outer.steps += steps
        yield
        return
    task = _current.task = _Task(title)
    task.steps = steps
    if _is_wanted():
        task.show()
    try:
        yield
    finally:
        _current.task = None
        task.end()


def step(doing: str, more: int = 0) -> None:
    """The next step begins; `more` is the number of steps beyond those announced so far."""
    task = _current.task
    if task is not None:
        task.begun += 1
        task.steps += more
        task.doing = doing


def make_room() -> None:
    """To be called before something else is printed: take the line away for the moment."""
    if _current.task is not None:
        _current.task.clear()


def _is_wanted() -> bool:
    if os.environ.get(VARIABLE) == "0" or os.environ.get("LOCAL_RANK", "0") != "0":
        return False
    try:
        is_terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):  # there is no stderr, or it is closed
        return False
    return is_terminal and os.environ.get("TERM") != "dumb"
