"""The terminal output of `mishkit compare`: the progress bar and the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich.progress
from rich.console import Console
from rich.table import Table

from ..common.bars import table
from ..common.formats import NONE, counted, ratio, signed, significant, with_half
from .comparison import Comparison
from .settings import Settings, Trial
from .trial import Watcher
from .verdicts import headline, summarise

_console = Console(highlight=False)


class Progress(Watcher):
    """A progress bar over all trials, and a line for each trial that finishes."""

    def __init__(self, settings: Settings, planned: int) -> None:
        self._labels = {contender.name: contender.label for contender in settings.contenders}
        self._several = len(settings.datasets) > 1
        self._planned = planned
        self._epochs = settings.epochs
        self._done = 0
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=None),
            rich.progress.TextColumn("{task.percentage:3.0f} %"),
            rich.progress.TimeRemainingColumn(),
            console=_console,
            transient=True,
        )
        self._task = self._bar.add_task("training", total=planned)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def round(self, planned: int, finished: int) -> None:
        if finished:
            self._bar.console.print(
                f"There already: {finished} of {counted(planned, 'trial')}; --fresh forgets them.",
                markup=False,
            )
        self._done += finished
        self._bar.update(self._task, completed=self._done)

    def epoch(self, trial: Trial, number: int, accuracy: float) -> None:
        self._bar.update(
            self._task,
            completed=self._done + number / self._epochs,
            description=f"{self._name(trial)}, epoch {number}/{self._epochs}: {accuracy:.1%}",
        )

    def trial(self, trial: Trial, result: dict[str, Any]) -> None:
        self._done += 1
        self._bar.update(self._task, completed=self._done)
        width = len(str(self._planned))
        self._bar.console.print(
            f"[{self._done:{width}}/{self._planned}] {self._name(trial)}: "
            f"{result['accuracy'][-1]:.1%} after {sum(result['seconds']):.1f} s",
            markup=False,
        )

    def _name(self, trial: Trial) -> str:
        parts = [trial.data] if self._several else []
        parts.append(self._labels[trial.activation])
        parts.append(f"lr {trial.lr:g}" if trial.phase == "tune" else f"seed {trial.seed}")
        return ", ".join(parts)


def say(text: str) -> None:
    """Print one line."""
    _console.print(text, markup=False, soft_wrap=True)


def say_path(path: Path) -> None:
    """Print the last line: where the report is."""
    say(f"Report: {path}")


def show(result: Comparison) -> None:
    """Print the results, and for each data set the table in two parts that fit 80 columns."""
    summary = summarise(result)
    if not result.is_complete:
        say(f"Partial: {len(result.finals)} of {counted(result.wanted, 'final training')} done.")
    for data, rows in summary.groupby("data", sort=False):
        fewest, most = rows["seeds"].min(), rows["seeds"].max()
        seeds = f"{most if fewest == most else f'{fewest}–{most}'} seed{'s' if most > 1 else ''}"
        model, target = rows["model"].iloc[0], rows["target"].iloc[0]
        cost = _named_table(
            f"{data}, {model}: the cost of a training step ({seeds})",
            ("activation", "forward, ms", "backward, ms", "both", "kept for\nbackward", "kept"),
        )
        training = _named_table(
            f"{data}, {model}: training to {target:.1%}, and to the end ({seeds})",
            ("activation", "rate", "epochs", "seconds", "final, %", "difference"),
        )
        for row in rows.to_dict("records"):
            cost.add_row(
                row["label"],
                _two_lines(row, "forward_ms"),
                _two_lines(row, "backward_ms"),
                ratio(row["step_ratio"]),
                f"{significant(row['kept_bytes'] / 1024)} KiB",
                ratio(row["kept_ratio"]),
            )
            training.add_row(
                row["label"],
                f"{row['lr']:g}{' !' if row['lr_at_edge'] else ''}",
                target_cell(row, "epochs_to_target"),
                target_cell(row, "budget_s"),
                _two_lines(row, "accuracy", 4),
                NONE
                if row["activation"] == result.baseline.name
                else f"{signed(row['accuracy_diff'], row['accuracy_diff_half'])}\n"
                f"{row['accuracy_verdict']}",
            )
        _console.print(cost)
        _console.print(training)
    edge = " !: at the edge of the rates tried." if summary["lr_at_edge"].any() else ""
    say(
        f"{headline(summary, result.baseline.label)}.\n"
        f"±: 95 % interval over seeds. × and differences (points) are to {result.baseline.label}.\n"
        f"Kept: for backward, a sample. {NONE}: target not reached.{edge}"
    )


def target_cell(row: dict[Any, Any], quantity: str) -> str:
    """The mean over the seeds that reached the target, how many if not all, a dash if none did."""
    if not row["reached"]:
        return NONE
    if row["reached"] < row["seeds"]:
        return f"{significant(row[quantity])}\n{row['reached']} of {row['seeds']}"
    return _two_lines(row, quantity)


def _two_lines(row: dict[Any, Any], quantity: str, digits: int = 3) -> str:
    return with_half(row[quantity], row[f"{quantity}_half"], digits, "\n")


def _named_table(title: str, columns: tuple[str, ...]) -> Table:
    grid = table(title, columns)
    grid.columns[0].no_wrap = False  # names are wrapped at words to make room for numbers
    return grid
