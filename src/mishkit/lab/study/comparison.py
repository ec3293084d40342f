"""The results of a sweep: the trials that count, as tidy tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median
from typing import Any

import pandas as pd

from ..common import contenders
from ..common.contenders import Contender
from .intervals import Interval, interval
from .settings import Settings, Trial


@dataclass(frozen=True)
class Choice:
    """The learning rate chosen for an activation on a data set, and the evidence for it."""

    lr: float
    scores: tuple[tuple[float, Interval], ...] = ()
    """The validation accuracy in percent for each rate; empty if there was no search."""

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or highest of the grid, so that a better one may lie
        outside.
        """
        return bool(self.scores) and self.lr in (self.scores[0][0], self.scores[-1][0])


@dataclass(frozen=True)
class Comparison:
    """The results of a sweep, as far as it got."""

    settings: Settings
    command: str
    environment: dict[str, str]
    done: list[tuple[Trial, dict[str, Any]]]
    """Finished trials in the order of the plan, tuning trials first."""
    devices: int = 1

    @property
    def contenders(self) -> list[Contender]:
        return self.settings.contenders

    @property
    def baseline(self) -> Contender:
        """The contender that the others are compared with, and whose time and bytes are 1."""
        if self.settings.baseline is not None:
            return contenders.find(self.settings.baseline)
        relus = [contender for contender in self.contenders if contender.function == "relu"]
        return (relus or self.contenders)[0]

    @property
    def wanted(self) -> int:
        """The number of final trials when all are done."""
        settings = self.settings
        return len(settings.datasets) * len(self.contenders) * settings.seeds

    @property
    def is_complete(self) -> bool:
        return len(self.finals) == self.wanted

    @cached_property
    def choices(self) -> dict[tuple[str, str], Choice]:
        """The choices, by data set and activation."""
        return choose(self.settings, self.done)

    @cached_property
    def targets(self) -> dict[str, float]:
        """The target test accuracy, by data set."""
        stated, datasets = self.settings.target, self.settings.datasets
        if stated:
            values = stated if len(stated) > 1 else stated * len(datasets)
            return dict(zip(datasets, values, strict=True))
        targets = {}
        for data in datasets:
            ends = [
                (trial.activation, result["accuracy"][-1])
                for trial, result in self.done
                if trial.phase == "final" and trial.data == data
            ]
            ends = [end for end in ends if end[0] == self.baseline.name] or ends
            if ends:  # whole percents, at least a point below the mean
                mean = fmean(accuracy for _, accuracy in ends)
                targets[data] = max(0, int(100 * mean - 1)) / 100
        return targets

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Tidy: one row per trial. Accuracies are from 0 to 1, times in ms or s, as named."""
        labels = {contender.name: contender.label for contender in self.contenders}
        rows = []
        for trial, result in self.done:
            target = self.targets.get(trial.data) if trial.phase == "final" else None
            accuracy, seconds = result["accuracy"], result["seconds"]
            reached = [
                number
                for number, value in enumerate(accuracy, 1)
                if target is not None and value >= target
            ]
            epoch_s = median(seconds)
            rows.append(
                {
                    "trial": trial.id,
                    "phase": trial.phase,
                    "data": trial.data,
                    "model": result["model"],
                    "activation": trial.activation,
                    "label": labels[trial.activation],
                    "lr": trial.lr,
                    "seed": trial.seed,
                    "epochs": len(accuracy),
                    "accuracy": accuracy[-1],
                    "loss": result["loss"][-1],
                    "train_loss": result["train_loss"][-1],
                    "target": target,
                    "epochs_to_target": reached[0] if reached else None,
                    "epoch_s": epoch_s,
                    "budget_s": reached[0] * epoch_s if reached else None,
                    **{name: result[name] for name in _COPIED},
                }
            )
        return pd.DataFrame(rows)

    @cached_property
    def finals(self) -> pd.DataFrame:
        """The rows of `trials` on which the verdicts are based."""
        return self.trials[self.trials["phase"] == "final"] if self.done else pd.DataFrame()

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """Tidy: one row per epoch of each trial. Seconds are those of training only."""
        columns = ("train_loss", "loss", "accuracy", "seconds")
        return pd.DataFrame(
            {
                "trial": trial.id,
                "phase": trial.phase,
                "data": trial.data,
                "activation": trial.activation,
                "lr": trial.lr,
                "seed": trial.seed,
                "epoch": number,
                **dict(zip(columns, values, strict=True)),
            }
            for trial, result in self.done
            for number, values in enumerate(
                zip(*(result[column] for column in columns), strict=True), 1
            )
        )


_COPIED = (
    *("step_ms", "forward_ms", "backward_ms", "step_ms_p10", "step_ms_p90", "kept_bytes"),
    *("steps", "sites", "parameters", "classes", "train_size", "test_size"),
    *("processor", "threads", "torch", "mishkit", "finished"),
)


def choose(
    settings: Settings, finished: Sequence[tuple[Trial, dict[str, Any]]]
) -> dict[tuple[str, str], Choice]:
    """The rate with the best mean validation accuracy; the lowest one in case of a tie."""
    choices = {}
    for data in settings.datasets:
        for contender in settings.contenders:
            if len(settings.rates) == 1:
                choices[data, contender.name] = Choice(settings.rates[0])
                continue
            scores = []
            for lr in settings.rates:
                accuracies = [
                    100 * result["accuracy"][-1]
                    for trial, result in finished
                    if trial.phase == "tune"
                    and (trial.data, trial.activation, trial.lr) == (data, contender.name, lr)
                ]
                if accuracies:
                    scores.append((lr, interval(accuracies)))
            if scores:
                best = max(scores, key=lambda score: score[1].mean)
                choices[data, contender.name] = Choice(best[0], tuple(scores))
    return choices
