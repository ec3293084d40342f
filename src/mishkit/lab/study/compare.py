"""`mishkit compare`: train a network with several activations and report costs and gains.

The design, from the smallest part up:

- A **trial** (trial.py) is one training, a pure function of its settings, with JSON as input and
  output.
- A **sweep** is two rounds of trials. The first searches for the learning rate: every activation on
  every data set with every rate of the grid, judged on a part of the training data. The second
  trains with the best rate of each, on all the training data, once per seed, and is judged on the
  test data.
- A **runner** (sweep.py) runs the trials of a round somewhere. A **store** keeps the finished ones,
  so that the same command continues where it was stopped.
- A **comparison** is the trials that count, as one tidy table with one row per trial. Intervals
  (intervals.py), verdicts (verdicts.py) and the report (report.py, plots.py) are made from that
  table alone.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric

from .. import INTERRUPTED, LabError
from ..common import environment
from ..common.contenders import Contender
from ..common.files import locked
from . import console, report, sweep
from . import trial as _trial
from .comparison import Choice, Comparison, choose
from .settings import Settings, Trial, under_torchrun
from .sweep import Runner, Store
from .training import Stopped
from .trial import Watcher

TUNING_SEEDS_FROM = 1000
"""Tuning uses separate seeds, this far above the others."""


def tuning(settings: Settings, devices: int = 1) -> list[Trial]:
    """The trials of the first round; none if there is only one rate."""
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
    """The trials of the second round.

    All contenders take a turn with one seed before the next seed begins, starting with a different
    one each time. So a machine that is slow for a while is slow for all of them.
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
    """Run the trials that are not in the store yet. Ctrl-C ends it with those finished so far."""
    facts = environment.describe(device)
    facts["PyTorch's threads"] = str(settings.resolved_threads)
    planned = tuning(settings, devices)
    try:
        _run(planned, store, runner, watcher)
        finished = [(trial, store[trial]) for trial in planned]
        finals = final(settings, choose(settings, finished), devices)
        planned += finals
        _run(finals, store, runner, watcher)
    except Stopped:
        pass
    finished = [(trial, store[trial]) for trial in planned if trial in store]
    return Comparison(settings, command, facts, finished, devices)


def _run(planned: Sequence[Trial], store: Store, runner: Runner, watcher: Watcher) -> None:
    missing = [trial for trial in planned if trial not in store]
    watcher.round(len(planned), len(planned) - len(missing))
    for trial, result in runner(missing):
        store.add(trial, result)
        watcher.trial(trial, result)


def main(settings: Settings, command: str) -> int:
    """Compare, print and write; returns the exit status of the process."""
    settings.check()
    if settings.is_parallel:
        return _compare_and_tell(None, settings, command)
    devices, nodes, strategy = settings.devices, 1, settings.strategy
    if under_torchrun():
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
    compare_and_tell: Any = _compare_and_tell  # Fabric's annotation omits the extra arguments
    try:
        return int(fabric.launch(compare_and_tell, settings, command))
    finally:
        # If this were left to interpreter shutdown, its threads might abort a finished process.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _compare_and_tell(fabric: Fabric | None, settings: Settings, command: str) -> int:
    """What each process does; only the first one stores, prints and writes."""
    devices = 1 if fabric is None else fabric.world_size
    with sweep.StopRequest() as stop:
        if fabric is not None and not fabric.is_global_zero:
            sweep.follow(fabric, stop.is_set)
            return 0
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
            settings.ray, settings.worker_count, settings.resolved_threads, gpus, stop.is_set
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
