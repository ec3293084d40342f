"""`mishkit compare`: trains a network with several activations and says what each costs and brings.

The design, from the smallest part up:

- A **trial** (trial.py) is one training, a pure function of its settings, JSON in and JSON out.
- A **sweep** is two rounds of trials. The first searches the learning rate: every activation on
  every data set with every rate of the grid, judged by a part of the training data. The second
  trains with the best rate of each, on all the training data, once for every seed, and is judged
  by the test data.
- A **runner** (sweep.py) runs the trials of a round somewhere; a **store** keeps those that are
  finished, so that the same command goes on where it was stopped.
- A **comparison** is the trials that count, as one tidy table with a row a trial. Intervals and
  verdicts (intervals.py) and the report (report.py, plots.py) are made from that table alone.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric

import mishkit as mk

from . import INTERRUPTED, LabError, contenders, environment, sweep
from . import trial as _trial
from ._files import locked
from .contenders import Contender
from .intervals import Interval, interval
from .sweep import Runner, Store
from .training import Stopped
from .trial import Phase, Trial, Watcher

TUNING_SEEDS_FROM = 1000
"""Tuning has seeds of its own, this far above the others."""


@dataclass(frozen=True)
class Settings:
    """What is compared and how."""

    activations: tuple[str, ...] = contenders.DEFAULT
    data: tuple[str, ...] = ("mnist",)
    model: str = "auto"
    options: tuple[str, ...] = ()
    data_root: Path = Path("data")
    download: bool = False
    image_size: int | None = None
    train_samples: int | None = None
    test_samples: int | None = None
    channels: int = 16
    epochs: int = 5
    seeds: int = 5
    first_seed: int = 0
    lr: tuple[float, ...] = (5e-3, 1e-2, 2e-2, 4e-2)
    """The grid; with a single rate nothing is searched."""
    tuning_seeds: int = 2
    batch_size: int = 64
    target: tuple[float, ...] = ()
    """For each data set, one for all, or none: a point below the baseline."""
    baseline: str | None = None
    """None: the first ReLU, or else the first activation."""
    threads: int | None = None
    workers: int | None = None
    ray: str | None = None
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: str = "1"
    strategy: str = "auto"
    output: Path = Path("mishkit-compare")
    fresh: bool = False

    @cached_property
    def contenders(self) -> list[Contender]:
        return [contenders.find(name) for name in dict.fromkeys(self.activations)]

    @cached_property
    def rates(self) -> list[float]:
        return sorted(set(self.lr))

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(self.data))

    @property
    def is_parallel(self) -> bool:
        return self.ray is not None or (self.workers or 1) > 1

    def check(self) -> None:
        """Raises LabError for what no trial would notice."""
        if not self.contenders:
            raise LabError("no activation to compare")
        if self.baseline is not None and self.baseline not in self.activations:
            raise LabError(f"the baseline {self.baseline!r} is none of the activations compared")
        if not self.rates or not all(0 < lr < math.inf for lr in self.rates):
            raise LabError("--lr takes finite learning rates above 0, as in 2e-3,5e-3")
        if len(self.target) > 1 and len(self.target) != len(self.datasets):
            raise LabError("--target is given once for all data, or once for each --data")
        if self.is_parallel and (self.devices != "1" or _under_torchrun()):
            raise LabError("--workers and --ray run whole trials; --devices spreads each of them")

    def trial(
        self, phase: Phase, data: str, activation: str, lr: float, seed: int, devices: int
    ) -> Trial:
        return Trial(
            phase, data, self.model, activation, lr, seed, devices=devices, **self._shared()
        )

    def shared(self, devices: int) -> dict[str, Any]:
        """What all trials of a sweep have in common, and where their times belong."""
        shared = self._shared()
        for name in ("data_root", "download"):
            del shared[name]
        return {
            "model": self.model,
            **shared,
            "devices": devices,
            "workers": self.worker_count,
            "ray": self.ray is not None,
            "torch": torch.__version__,
            "mishkit": mk.__version__,
        }

    @property
    def worker_count(self) -> int:
        if self.ray is not None and self.workers is None:
            return max(1, _cores() // self.thread_count)
        return self.workers or 1

    @property
    def thread_count(self) -> int:
        """Of each trial. Those of trials side by side share the cores."""
        if self.threads is not None:
            return self.threads
        if self.ray is not None:
            return max(1, _cores() // self.workers) if self.workers else 1
        if self.is_parallel:
            return max(1, _cores() // self.worker_count)
        return torch.get_num_threads()

    def _shared(self) -> dict[str, Any]:
        return {
            "options": self.options,
            "code": self._code,
            "channels": self.channels,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "data_seed": self.first_seed,
            "train_samples": self.train_samples,
            "test_samples": self.test_samples,
            "image_size": self.image_size,
            "precision": self.precision,
            "accelerator": self.accelerator,
            "strategy": self.strategy,
            "threads": self._threads,
            "data_root": str(self.data_root),
            "download": self.download,
        }

    @cached_property
    def _code(self) -> str:
        return _trial.code_of(self.model)

    @cached_property
    def _threads(self) -> int:
        return self.thread_count  # once: a trial may change what PyTorch answers


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parse_rates(text: str) -> tuple[float, ...]:
    """Learning rates with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise LabError(f'--lr takes learning rates with commas, 2e-3,5e-3, not "{text}"') from None


@dataclass(frozen=True)
class Choice:
    """The learning rate that an activation is given on a data set, and what speaks for it."""

    lr: float
    scores: tuple[tuple[float, Interval], ...] = ()
    """The accuracy on the validation part for each rate, in percent; none without a search."""

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or highest of the grid, so that a better one may lie
        beyond."""
        return bool(self.scores) and self.lr in (self.scores[0][0], self.scores[-1][0])


@dataclass(frozen=True)
class Comparison:
    """What a sweep found, as far as it came."""

    settings: Settings
    command: str
    environment: dict[str, str]
    done: list[tuple[Trial, dict[str, Any]]]
    """Finished trials, those of tuning first, in the order of the plan."""
    devices: int = 1

    @property
    def contenders(self) -> list[Contender]:
        return self.settings.contenders

    @property
    def baseline(self) -> Contender:
        """Whose time and bytes are 1, and whom the others are set against."""
        if self.settings.baseline is not None:
            return contenders.find(self.settings.baseline)
        relus = [contender for contender in self.contenders if contender.function == "relu"]
        return (relus or self.contenders)[0]

    @property
    def wanted(self) -> int:
        """How many final trials there are when all are done."""
        settings = self.settings
        return len(settings.datasets) * len(self.contenders) * settings.seeds

    @property
    def is_complete(self) -> bool:
        return len(self.finals) == self.wanted

    @cached_property
    def choices(self) -> dict[tuple[str, str], Choice]:
        """By data set and activation."""
        return choose(self.settings, self.done)

    @cached_property
    def targets(self) -> dict[str, float]:
        """The test accuracy to reach, by data set."""
        given, datasets = self.settings.target, self.settings.datasets
        if given:
            values = given if len(given) > 1 else given * len(datasets)
            return dict(zip(datasets, values, strict=True))
        found = {}
        for data in datasets:
            ends = [
                (one.activation, result["accuracy"][-1])
                for one, result in self.done
                if one.phase == "final" and one.data == data
            ]
            ends = [end for end in ends if end[0] == self.baseline.name] or ends
            if ends:  # whole percents, at least a point below
                mean = fmean(accuracy for _, accuracy in ends)
                found[data] = max(0, int(100 * mean - 1)) / 100
        return found

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Tidy: one row a trial. Accuracies from 0 to 1, times in ms or s, as the names say."""
        labels = {contender.name: contender.label for contender in self.contenders}
        rows = []
        for one, result in self.done:
            target = self.targets.get(one.data) if one.phase == "final" else None
            accuracy, seconds = result["accuracy"], result["seconds"]
            reached = [
                number
                for number, value in enumerate(accuracy, 1)
                if target is not None and value >= target
            ]
            epoch_s = median(seconds)
            rows.append(
                {
                    "trial": one.id,
                    "phase": one.phase,
                    "data": one.data,
                    "model": result["model"],
                    "activation": one.activation,
                    "label": labels[one.activation],
                    "lr": one.lr,
                    "seed": one.seed,
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
        """The rows of `trials` that the verdicts are made from."""
        return self.trials[self.trials["phase"] == "final"] if self.done else pd.DataFrame()

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """Tidy: one row an epoch of each trial. Seconds are of training alone."""
        columns = ("train_loss", "loss", "accuracy", "seconds")
        return pd.DataFrame(
            {
                "trial": one.id,
                "phase": one.phase,
                "data": one.data,
                "activation": one.activation,
                "lr": one.lr,
                "seed": one.seed,
                "epoch": number,
                **dict(zip(columns, values, strict=True)),
            }
            for one, result in self.done
            for number, values in enumerate(
                zip(*(result[column] for column in columns), strict=True), 1
            )
        )


_COPIED = (
    *("step_ms", "forward_ms", "backward_ms", "step_ms_p10", "step_ms_p90", "kept_bytes"),
    *("steps", "sites", "parameters", "classes", "train_size", "test_size"),
    *("processor", "threads", "torch", "mishkit", "finished"),
)


def tuning(settings: Settings, devices: int = 1) -> list[Trial]:
    """The first round: none where there is nothing to search."""
    if len(settings.rates) == 1:
        return []
    return [
        settings.trial("tune", data, contender.name, lr, seed, devices)
        for turn, seed in enumerate(
            range(
                TUNING_SEEDS_FROM + settings.first_seed,
                TUNING_SEEDS_FROM + settings.first_seed + settings.tuning_seeds,
            )
        )
        for data in settings.datasets
        for contender in rotated(settings.contenders, turn)
        for lr in settings.rates
    ]


def final(
    settings: Settings, choices: dict[tuple[str, str], Choice], devices: int = 1
) -> list[Trial]:
    """The second round.

    All contenders take a turn with one seed before the next seed begins, each time beginning with
    another, so that a machine that is slow for a while is slow for all of them.
    """
    return [
        settings.trial(
            "final", data, contender.name, choices[data, contender.name].lr, seed, devices
        )
        for turn, seed in enumerate(
            range(settings.first_seed, settings.first_seed + settings.seeds)
        )
        for data in settings.datasets
        for contender in rotated(settings.contenders, turn)
    ]


def rotated(entrants: Sequence[Contender], turn: int) -> list[Contender]:
    start = turn % len(entrants)
    return [*entrants[start:], *entrants[:start]]


def choose(
    settings: Settings, done: Sequence[tuple[Trial, dict[str, Any]]]
) -> dict[tuple[str, str], Choice]:
    """The rate with the best mean accuracy on the validation part; of equals, the lowest."""
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
                    for one, result in done
                    if one.phase == "tune"
                    and (one.data, one.activation, one.lr) == (data, contender.name, lr)
                ]
                if accuracies:
                    scores.append((lr, interval(accuracies)))
            if scores:
                best = max(scores, key=lambda score: score[1].mean)
                choices[data, contender.name] = Choice(best[0], tuple(scores))
    return choices


def compare(
    settings: Settings,
    command: str,
    store: Store,
    runner: Runner,
    watcher: Watcher,
    *,
    devices: int = 1,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Runs what is not in the store yet. Ctrl-C ends it with the trials that are finished."""
    facts = environment.describe(device)
    facts["PyTorch's threads"] = str(settings._threads)
    planned = tuning(settings, devices)
    try:
        _run(planned, store, runner, watcher)
        done = [(one, store[one]) for one in planned]
        finals = final(settings, choose(settings, done), devices)
        planned += finals
        _run(finals, store, runner, watcher)
    except Stopped:
        pass
    done = [(one, store[one]) for one in planned if one in store]
    return Comparison(settings, command, facts, done, devices)


def _run(planned: Sequence[Trial], store: Store, runner: Runner, watcher: Watcher) -> None:
    missing = [one for one in planned if one not in store]
    watcher.round(len(planned), len(planned) - len(missing))
    for one, result in runner(missing):
        store.add(one, result)
        watcher.trial(one, result)


def main(settings: Settings, command: str) -> int:
    """Compares, prints and writes; returns the exit status of the process."""
    settings.check()
    if settings.is_parallel:
        return _compare_and_tell(None, settings, command)
    devices, nodes, strategy = settings.devices, 1, settings.strategy
    if _under_torchrun():
        local, world = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        devices, nodes = str(local), world // local
        strategy = "ddp" if strategy == "auto" and world > 1 else strategy
    fabric = _trial.launch(settings.accelerator, strategy, devices, nodes, settings.precision)
    if settings.batch_size % fabric.world_size:
        raise LabError(
            f"a batch of {settings.batch_size} does not divide evenly over "
            f"{fabric.world_size} devices"
        )
    settings = dataclasses.replace(settings, strategy=strategy)
    compare_and_tell: Any = _compare_and_tell  # Fabric's annotation forgets the further arguments
    try:
        return int(fabric.launch(compare_and_tell, settings, command))
    finally:
        # Left to the end of the interpreter, its threads may abort a process that is done.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _under_torchrun() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def _compare_and_tell(fabric: Fabric | None, settings: Settings, command: str) -> int:
    """What each process does; the first alone keeps, prints and writes."""
    devices = 1 if fabric is None else fabric.world_size
    with sweep.StopRequest() as stop:
        if fabric is not None and not fabric.is_global_zero:
            sweep.follow(fabric, stop.is_set)
            return 0
        from . import console, report

        planned = (
            len(tuning(settings))
            + len(settings.datasets) * len(settings.contenders) * settings.seeds
        )
        with locked(settings.output / sweep.LOCK, f"the trials in {settings.output}"):
            store = Store(settings.output, settings.shared(devices), fresh=settings.fresh)
            with (
                console.Progress(settings, planned) as progress,
                _runner(fabric, settings, progress, stop) as runner,
            ):
                result = compare(
                    settings,
                    command,
                    store,
                    runner,
                    progress,
                    devices=devices,
                    device="cpu" if fabric is None else fabric.device,
                )
            if result.finals.empty:
                console.say(
                    "Stopped before the first final training: the same command goes on from here."
                )
                return INTERRUPTED
            console.show(result)
            console.say_path(report.write(result))
    return 0 if result.is_complete else INTERRUPTED


@contextmanager
def _runner(
    fabric: Fabric | None, settings: Settings, watcher: Watcher, stop: sweep.StopRequest
) -> Iterator[Runner]:
    if settings.ray is not None:
        gpus = int(settings.accelerator in ("cuda", "gpu"))
        with sweep.on_ray(
            settings.ray, settings.worker_count, settings._threads, gpus, stop.is_set
        ) as runner:
            yield runner
    elif fabric is None:
        with sweep.in_processes(settings.worker_count, stop.is_set) as runner:
            yield runner
    elif fabric.world_size == 1:
        yield sweep.one_by_one(watcher, stop.is_set)
    else:
        yield sweep.spread(fabric, watcher, stop.is_set)
        if not stop.is_set():
            sweep.dismiss(fabric)
