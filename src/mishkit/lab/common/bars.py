"""Bars: what was promised, what was measured, and whether the promise is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import rich.progress
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import measure_renderables
from rich.table import Table
from rich.text import Text

from .. import Interrupted
from .formats import NONE, counted

WIDTH = 118
"""Columns that the tables need; a narrower terminal wraps them, but a pipe does not."""
UNBOUNDED = 10_000


@dataclass(frozen=True)
class Verdict:
    """One bar and whether it was met, in words."""

    claim: str
    bar: str
    measured: str
    met: bool | None
    """None if it was not measured."""

    @property
    def word(self) -> str:
        """met, MISSED or a dash."""
        return NONE if self.met is None else "met" if self.met else "MISSED"


def any_missed(verdicts: Sequence[Verdict]) -> bool:
    """Whether any bar was measured and missed."""
    return any(verdict.met is False for verdict in verdicts)


def console() -> Console:
    """A console for the terminal or a file, at least as wide as the tables."""
    terminal = Console(highlight=False)
    terminal.width = max(WIDTH, terminal.width)
    return terminal


def progress_bar(*columns: rich.progress.ProgressColumn, **keywords: Any) -> rich.progress.Progress:
    """A bar on stderr that goes away at the end, or nothing if stderr is not a terminal; so what a
    command prints can be piped.
    """
    status = Console(stderr=True)
    return rich.progress.Progress(
        *columns, console=status, transient=True, disable=not status.is_terminal, **keywords
    )


class FittingTable(Table):
    """A table that turns into a list, one line per cell, if the terminal is too narrow for its
    longest words and numbers, so that none is broken or cut.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._least(console, options.update(width=UNBOUNDED)) <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield Text.assemble((str(self.title), "bold"))
        heads = [" ".join(str(column.header).split()) for column in self.columns]
        for cells in zip(*(column.cells for column in self.columns), strict=True):
            yield Text("")
            for number, (head, cell) in enumerate(zip(heads, cells, strict=True)):
                text = " ".join(str(cell).split())
                if text:
                    indent = "  " if number else ""
                    yield Text(f"{indent}{head}: {text}" if head else f"{indent}{text}")
        yield Text("")

    def _least(self, console: Console, options: ConsoleOptions) -> int:
        """The terminal columns that the table needs."""
        least = self.__rich_measure__(console, options).maximum
        for column in self.columns:
            if not column.no_wrap:
                widths = measure_renderables(console, options, [column.header, *column.cells])
                least -= widths.maximum - widths.minimum
        return least


def table(title: str, columns: Sequence[str], *, words: int = 1) -> FittingTable:
    """An empty table; the first `words` columns hold words, the others numbers."""
    grid = FittingTable(
        title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    for number, column in enumerate(columns):
        grid.add_column(column, justify="left" if number < words else "right", no_wrap=True)
    return grid


def verdict_table(title: str, verdicts: Sequence[Verdict]) -> Table:
    """The verdicts, one per row, and how many bars were met."""
    grid = table(title, ("what", "bar", "measured", ""))
    grid.columns[0].no_wrap = grid.columns[2].no_wrap = False
    styles = {"met": "green", "MISSED": "bold red"}
    for verdict in verdicts:
        word = Text(verdict.word, style=styles.get(verdict.word, ""))
        grid.add_row(Text(verdict.claim), Text(verdict.bar), Text(verdict.measured), word)
    return grid


def summary(verdicts: Sequence[Verdict]) -> str:
    """How many bars were met, missed and not measured."""
    met, missed = (sum(v.met is state for v in verdicts) for state in (True, False))
    text = f"{met} of {counted(met + missed, 'bar')} met"
    unmeasured = len(verdicts) - met - missed
    return text + (f", {unmeasured} not measured" if unmeasured else "")


class Interruptible:
    """A block that Ctrl-C may end early; what was measured until then is still shown."""

    def __init__(self, out: Console) -> None:
        self.interrupted = False
        self._out = out

    def __enter__(self) -> Interruptible:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self.interrupted = isinstance(error, KeyboardInterrupt)
        if self.interrupted:
            self._out.print("Interrupted: what follows is partial.")
        return self.interrupted


def conclude(
    out: Console,
    title: str,
    verdicts: Sequence[Verdict],
    measured: Interruptible | None = None,
    csv: tuple[Path | None, Callable[[Path], None]] | None = None,
) -> int:
    """Print the bars and write the CSV; returns 1 if a bar was missed.

    Raises
    ------
    Interrupted
        if the measurement was interrupted; then no bar is checked
    """
    interrupted = measured is not None and measured.interrupted
    if not interrupted:
        out.print(verdict_table(title, verdicts))
        out.print(summary(verdicts) + ".")
    if csv is not None:
        path, write = csv
        if path is not None:
            write(path)
            out.print(Text(f"Written: {path}"))
    if interrupted:
        raise Interrupted("interrupted: not all was measured, and no bar was held against it")
    return int(any_missed(verdicts))
