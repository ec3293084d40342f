"""The terminal's side of `mishkit compare`: the progress bar and the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich.progress
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .compare import Comparison, Settings, summarise
from .contenders import find
from .formats import NONE, between, ratio, significant, with_std
from .training import Run, Watcher

_console = Console(highlight=False)


class Progress(Watcher):
    """A bar over all trainings, and a line for each one that is done."""

    def __init__(self, settings: Settings) -> None:
        self._labels = {name: find(name).label for name in settings.activations}
        self._runs = len(self._labels) * settings.seeds
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
        self._task = self._bar.add_task("starting", total=self._runs * self._epochs)
        self._steps_an_epoch = 0
        self._steps = 0

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def step(self) -> None:
        self._steps += 1
        if self._steps_an_epoch:  # known from the first epoch on
            within = self._steps / self._steps_an_epoch
            self._bar.update(self._task, completed=within)

    def epoch(self, run: Run) -> None:
        if not self._steps_an_epoch:
            self._steps_an_epoch = self._steps
        last = run.epochs[-1]
        self._bar.update(
            self._task,
            completed=self._steps / self._steps_an_epoch,
            description=f"{self._labels[run.activation]}, seed {run.seed}, "
            f"epoch {last.number}/{self._epochs}: {last.test_accuracy:.1%}",
        )

    def run(self, run: Run) -> None:
        self._done += 1
        width = len(str(self._runs))
        self._bar.console.print(
            f"[{self._done:{width}}/{self._runs}] {self._labels[run.activation]}, "
            f"seed {run.seed}: {run.epochs[-1].test_accuracy:.1%} "
            f"after {sum(epoch.seconds for epoch in run.epochs):.1f} s",
            markup=False,
        )


def say(text: str) -> None:
    """Prints one line."""
    _console.print(text, markup=False, soft_wrap=True)


def say_path(path: Path) -> None:
    """The last line: where the report is."""
    say(f"Report: {path}")


def show(result: Comparison) -> None:
    """Prints the table, in two parts that fit 80 columns."""
    table = summarise(result)
    fewest, most = table["seeds"].min(), table["seeds"].max()
    count = str(most) if fewest == most else f"{fewest}–{most}"
    seeds = f"{count} seed{'s' if most > 1 else ''}"
    if not result.is_complete:
        wanted = len(result.contenders) * result.settings.seeds
        say(f"Partial: {len(result.runs)} of {wanted} trainings were finished.")
    steps = _table(
        f"Cost of a training step ({seeds}; mean ± std, min–max)",
        ("activation", "forward, ms", "backward, ms", "both", "kept for\nbackward", "kept"),
    )
    training = _table(
        f"Training to {result.settings.target:.1%} and to the end ({seeds})",
        ("activation", "s/epoch", "epochs to\ntarget", "seconds to\ntarget", "final\naccuracy, %"),
    )
    for row in table.to_dict("records"):
        steps.add_row(
            row["label"],
            _two_lines(row, "forward_ms"),
            _two_lines(row, "backward_ms"),
            ratio(row["step_ratio"]),
            f"{significant(row['kept_bytes'] / 1024)} KiB",
            ratio(row["kept_ratio"]),
        )
        training.add_row(
            row["label"],
            f"{with_std(row['epoch_s_mean'], row['epoch_s_std'])}\n{ratio(row['epoch_ratio'])}",
            target_cell(row, "epochs_to_target", 2),
            target_cell(row, "seconds_to_target", 3),
            _two_lines(row, "accuracy"),
        )
    _console.print(steps)
    _console.print(training)
    say(
        f"× is relative to {result.baseline.label}; for time it is the ratio of medians.\n"
        f"Kept: what autograd keeps for backward, a sample. {NONE}: target not reached."
    )


def target_cell(row: dict[str, Any], quantity: str, digits: int) -> str:
    """The mean over the seeds that reached the target; how many, if not all; a dash if none."""
    text = with_std(row[f"{quantity}_mean"], row[f"{quantity}_std"], digits)
    if 0 < row["reached"] < row["seeds"]:
        text += f"\n({row['reached']} of {row['seeds']})"
    return text


def _two_lines(row: dict[str, Any], quantity: str) -> str:
    mean, std, low, high = (row[f"{quantity}_{what}"] for what in ("mean", "std", "min", "max"))
    return f"{with_std(mean, std)}\n{between(low, high)}"


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(
        title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table
