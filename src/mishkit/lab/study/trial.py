"""One trial of `mishkit compare`: a pure function of its settings, JSON in and JSON out.

Nothing but the settings decides what a trial gives, times apart, so it does not matter in which
process, on which machine or in which order trials run, and one that is finished need never run
again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning_fabric import Fabric

import mishkit as mk

from .. import LabError
from ..common import contenders, environment
from . import data as _data
from . import networks, training

Phase = Literal["tune", "final"]
"""Tuning trials are judged by a part of the training data, final ones by the test data."""


@dataclass(frozen=True)
class Trial:
    """The settings of one training."""

    phase: Phase
    data: str
    model: str
    activation: str
    lr: float
    """The highest learning rate of the schedule."""
    seed: int
    """Decides the weights and the order of the samples, the same for every activation."""
    options: tuple[str, ...] = ()
    """What else builds the model, as "key=value"."""
    code: str = ""
    """The digest of the file that the model comes from, if it is one."""
    channels: int = 16
    epochs: int = 5
    batch_size: int = 64
    data_seed: int = 0
    """Decides the split of the data."""
    train_samples: int | None = None
    test_samples: int | None = None
    image_size: int | None = None
    precision: str = "32-true"
    accelerator: str = "auto"
    strategy: str = "auto"
    devices: int = 1
    """Over which one training is spread."""
    threads: int = 1
    data_root: str = "data"
    download: bool = False

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that stand for all settings, but where the data lies."""
        settings = self.to_json()
        del settings["data_root"], settings["download"]
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "options": list(self.options)}

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Trial:
        return cls(**{**settings, "options": tuple(settings["options"])})

    def __str__(self) -> str:
        return f"{self.phase} {self.data}, {self.activation}, lr {self.lr:g}, seed {self.seed}"


class Watcher:
    """Is told how trials go on; does nothing."""

    def round(self, planned: int, found: int) -> None:
        """A round of so many trials begins, so many of which were finished before."""

    def epoch(self, trial: Trial, number: int, accuracy: float) -> None:
        """An epoch is done."""

    def trial(self, trial: Trial, result: dict[str, Any]) -> None:
        """A trial is done."""


def code_of(model: str) -> str:
    """The digest of the file in "path/to/file.py:function", so that a change of it is noticed."""
    place, _, _ = model.rpartition(":")
    if not place.endswith(".py"):
        return ""
    try:
        return hashlib.sha256(Path(place).read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise LabError(f"{place} can't be read: {error.strerror}") from None


def run(
    settings: Mapping[str, Any],
    *,
    fabric: Fabric | None = None,
    watcher: Watcher | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains once and returns what was found, all of it plain values.

    Parameters
    ----------
    settings : mapping
        `Trial.to_json`
    fabric : Fabric, optional
        what was launched for several devices; made anew for one
    watcher, is_stopping
        hear of every epoch, and stop the training within a step (`training.Stopped`)

    Returns
    -------
    dict
        lists `train_loss`, `loss`, `accuracy` and `seconds` with a number an epoch (what is not
        finite is None), medians `forward_ms`, `backward_ms` and `step_ms` over the steps,
        `kept_bytes` a sample, and what data, model, machine and versions they belong to

    Raises
    ------
    LabError
        if data, model, activation and sizes do not go together
    """
    trial = Trial.from_json(settings)
    watcher = watcher or Watcher()
    if trial.code != code_of(trial.model):
        raise LabError(f"{trial.model.rpartition(':')[0]} has changed since the sweep began")
    contender = contenders.find(trial.activation)
    data = _load(
        trial.data,
        seed=trial.data_seed,
        train_samples=trial.train_samples,
        test_samples=trial.test_samples,
        image_size=trial.image_size,
        validation=trial.phase == "tune",
        root=Path(trial.data_root),
        download=trial.download,
    )
    if trial.batch_size > len(data.train_labels):
        raise LabError(
            f"a batch of {trial.batch_size} is more than the {len(data.train_labels)} samples "
            f"there are to {'tune' if trial.phase == 'tune' else 'train'} with in {trial.data}"
        )
    fabric = fabric or launch(trial.accelerator, trial.strategy, "1", 1, trial.precision)
    with training.reproducible(trial.threads):
        network, model, sites = networks.build(
            trial.model, trial.options, data, trial.channels, contender, trial.seed
        )
        parameters = sum(parameter.numel() for parameter in network.parameters())
        try:
            found = training.train(
                fabric,
                network,
                data,
                epochs=trial.epochs,
                batch_size=trial.batch_size,
                lr=trial.lr,
                seed=trial.seed,
                on_epoch=lambda number, epoch: watcher.epoch(trial, number, epoch.accuracy),
                is_stopping=is_stopping,
            )
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            raise LabError(f"{model} needs what {contender.name} overwrites in place") from error
        threads = torch.get_num_threads()
    step = [
        forward + backward for forward, backward in zip(found.forward, found.backward, strict=True)
    ]
    return {
        "model": model,
        "sites": sites,
        "parameters": parameters,
        "source": data.source,
        "train_size": len(data.train_labels),
        "test_size": len(data.test_labels),
        "shape": list(data.shape),
        "classes": data.classes,
        "kept_bytes": found.kept_bytes,
        "steps": len(step),
        "forward_ms": 1e3 * median(found.forward),
        "backward_ms": 1e3 * median(found.backward),
        "step_ms": 1e3 * median(step),
        "step_ms_p10": 1e3 * float(np.quantile(step, 0.1)),
        "step_ms_p90": 1e3 * float(np.quantile(step, 0.9)),
        "train_loss": [_finite(epoch.train_loss) for epoch in found.epochs],
        "loss": [_finite(epoch.loss) for epoch in found.epochs],
        "accuracy": [epoch.accuracy for epoch in found.epochs],
        "seconds": [epoch.seconds for epoch in found.epochs],
        "processor": environment.processor(),
        "threads": threads,
        "torch": torch.__version__,
        "mishkit": mk.__version__,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


_WORDS = ("model", "source", "processor", "torch", "mishkit", "finished")
_PER_EPOCH = ("train_loss", "loss", "accuracy", "seconds")
_FIGURES = (
    *("sites", "parameters", "train_size", "test_size", "classes", "kept_bytes", "steps"),
    *("forward_ms", "backward_ms", "step_ms", "step_ms_p10", "step_ms_p90", "threads"),
)


def check_result(found: Any) -> None:
    """Raises KeyError, TypeError or ValueError where that is nothing that `run` returned."""
    lengths = {len(found[name]) for name in _PER_EPOCH}
    figures = [found[name] for name in _FIGURES] + [
        figure for name in _PER_EPOCH for figure in found[name] if figure is not None
    ]
    if (
        len(lengths) != 1
        or 0 in lengths
        or not all(isinstance(found[name], str) for name in _WORDS)
        or not all(isinstance(figure, int | float) for figure in (*figures, *found["shape"]))
    ):
        raise ValueError("no result of a trial")


TIMES = frozenset(
    ("forward_ms", "backward_ms", "step_ms", "step_ms_p10", "step_ms_p90", "seconds", "finished")
)
"""What of a result is another each time."""


def launch(accelerator: str, strategy: str, devices: str, nodes: int, precision: str) -> Fabric:
    """Lightning's Fabric for these settings, whose many complaints become one line."""
    try:
        return Fabric(
            accelerator=accelerator,
            strategy=strategy,
            devices=devices,
            num_nodes=nodes,
            precision=cast(Any, precision),
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise LabError(f"Lightning Fabric refuses these settings: {reason}") from error


# Trials that follow each other mostly take the same data.
_load = functools.lru_cache(maxsize=2)(_data.load)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
