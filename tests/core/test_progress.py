"""The line that says how far something is: on a terminal alone, and only if it takes long."""

from __future__ import annotations

import io
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import mishkit as mk
from mishkit import _progress
from mishkit._progress import progress, step


class Terminal(io.StringIO):
    """Text written to a terminal, and an event for when a step is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.is_written = threading.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if "a forward pass" in text:
            self.is_written.set()
        return super().write(text)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stderr = Terminal()
    # pytest puts its own sys.stderr back before the test.
    monkeypatch.setattr(_progress, "sys", SimpleNamespace(stderr=stderr))
    monkeypatch.setattr(_progress, "DELAY", 0.0)
    monkeypatch.setattr(_progress, "EVERY", 0.001)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("MISHKIT_PROGRESS", raising=False)
    return stderr


class Waits(nn.Module):
    """Takes so long that progress is shown."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self.terminal, self.act = terminal, nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.terminal.is_written.wait(60)
        return self.act(x * 2)


@pytest.mark.parametrize(("function", "title"), [(mk.audit, "audit"), (mk.lean, "lean")])
def test_audit_and_lean_say_how_far_they_are(
    function: object, title: str, terminal: Terminal
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), Waits(terminal), nn.Linear(4, 4))
    function(model, torch.randn(1024, 4))  # type: ignore[operator]
    lines = terminal.getvalue().split("\r")
    assert any(line.startswith(f"mishkit.{title} ░") for line in lines)
    assert lines[-1] == "\x1b[K"  # nothing is left


def test_steps_of_what_is_within_are_added(terminal: Terminal) -> None:
    with progress("outer", steps=1):
        step("first")
        with progress("inner", steps=2):
            step("second")
            task = _progress._current.task
            assert task is not None and (task.title, task.begun, task.steps) == ("outer", 2, 3)
            step("third", more=1)
            assert "2/4 third, " in task.line()
    assert _progress._current.task is None


def test_nothing_is_shown_where_nobody_looks(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_shown() -> bool:
        with progress("audit", steps=1):
            task = _progress._current.task
            assert task is not None
            return task._thread is not None

    assert is_shown()
    for name, value in (("MISHKIT_PROGRESS", "0"), ("LOCAL_RANK", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not is_shown()
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(_progress, "sys", SimpleNamespace(stderr=stream))
        assert not is_shown()


def test_what_is_quick_shows_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "DELAY", 600.0)
    mk.audit(nn.Sequential(nn.Linear(4, 4), nn.SiLU()), torch.randn(3, 4))
    assert terminal.getvalue() == ""


def test_a_warning_has_a_line_of_its_own(terminal: Terminal) -> None:
    with progress("lean", steps=1):
        step("a forward pass")
        assert terminal.is_written.wait(60)
        _progress.make_room()
        assert "\r\x1b[K" in terminal.getvalue()
    _progress.make_room()  # nothing is going on


def test_the_line_goes_away_after_an_error(terminal: Terminal) -> None:
    with pytest.raises(RuntimeError, match="wrong"), progress("audit", steps=1):
        step("a forward pass")
        assert terminal.is_written.wait(60)
        raise RuntimeError("wrong")
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert _progress._current.task is None
