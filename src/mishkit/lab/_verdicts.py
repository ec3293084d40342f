"""Bars: what was promised, what was measured, and whether the one meets the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .formats import NONE

WIDTH = 118
"""Columns that the tables need; a narrower terminal wraps them, a pipe does not."""


@dataclass(frozen=True)
class Verdict:
    """One bar and how it was met, in words."""

    what: str
    bar: str
    measured: str
    met: bool | None
    """None where it was not measured."""

    @property
    def word(self) -> str:
        """met, MISSED or a dash."""
        return NONE if self.met is None else "met" if self.met else "MISSED"


def any_missed(verdicts: Sequence[Verdict]) -> bool:
    """Whether a bar was measured and not met."""
    return any(verdict.met is False for verdict in verdicts)


def console() -> Console:
    """The terminal, or a file, at least as wide as the tables."""
    found = Console(highlight=False)
    found.width = max(WIDTH, found.width)
    return found


def table(title: str, columns: Sequence[str]) -> Table:
    """An empty table: the first column of words, the others of figures."""
    made = Table(
        title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left", no_wrap=True)
    return made


def verdict_table(title: str, verdicts: Sequence[Verdict]) -> Table:
    """The verdicts, a row each, and how many were met."""
    made = table(title, ("what", "bar", "measured", ""))
    made.columns[0].no_wrap = made.columns[2].no_wrap = False
    styles = {"met": "green", "MISSED": "bold red"}
    for verdict in verdicts:
        word = Text(verdict.word, style=styles.get(verdict.word, ""))
        made.add_row(Text(verdict.what), Text(verdict.bar), Text(verdict.measured), word)
    return made


def summary(verdicts: Sequence[Verdict]) -> str:
    """How many bars were met, missed and not measured."""
    met, missed = (sum(v.met is state for v in verdicts) for state in (True, False))
    text = f"{met} of {met + missed} bars met"
    unmeasured = len(verdicts) - met - missed
    return text + (f", {unmeasured} not measured" if unmeasured else "")
