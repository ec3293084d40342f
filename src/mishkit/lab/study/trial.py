"""One trial of `mishkit compare`: a pure function of its settings, with JSON as input and output.

Apart from times, the result of a trial depends only on its settings. So it does not matter in which
process, on which machine or in which order trials run, and a finished trial need never run again.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric

import mishkit as mk

from .. import LabError
from ..common import contenders, environment
from . import data as _data
from . import networks, training
from .settings import Trial, code_of


class Watcher:
    """Is notified of the progress of trials; this base class does nothing."""

    def round(self, planned: int, finished: int) -> None:
        """A round of `planned` trials begins, `finished` of which are already done."""

    def epoch(self, trial: Trial, number: int, accuracy: float) -> None:
        """An epoch has finished."""

    def trial(self, trial: Trial, result: dict[str, Any]) -> None:
        """A trial has finished."""


def run(
    settings: Mapping[str, Any],
    *,
    fabric: Fabric | None = None,
    watcher: Watcher | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train once and return the results, all of them plain values.

    Parameters
    ----------
    settings : mapping
        `Trial.to_json`
    fabric : Fabric, optional
        what was launched for several devices; for one device, a new one is made
    watcher, is_stopping
        notified of every epoch; and able to stop the training within a step (`training.Stopped`)

    Returns
    -------
    dict
        lists `train_loss`, `loss`, `accuracy` and `seconds` with one number per epoch (non-finite
        numbers become None), medians `forward_ms`, `backward_ms` and `step_ms` over the steps,
        `kept_bytes` per sample, and a description of the data, model, machine and versions

    Raises
    ------
    LabError
        if the data, model, activation and sizes do not fit together
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
            result = training.train(
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
        forward + backward
        for forward, backward in zip(result.forward, result.backward, strict=True)
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
        "kept_bytes": result.kept_bytes,
        "steps": len(step),
        "forward_ms": 1e3 * median(result.forward),
        "backward_ms": 1e3 * median(result.backward),
        "step_ms": 1e3 * median(step),
        "step_ms_p10": 1e3 * float(np.quantile(step, 0.1)),
        "step_ms_p90": 1e3 * float(np.quantile(step, 0.9)),
        "train_loss": [_finite(epoch.train_loss) for epoch in result.epochs],
        "loss": [_finite(epoch.loss) for epoch in result.epochs],
        "accuracy": [epoch.accuracy for epoch in result.epochs],
        "seconds": [epoch.seconds for epoch in result.epochs],
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


def check_result(result: Any) -> None:
    """Raise KeyError, TypeError or ValueError if this can't be a result of `run`."""
    lengths = {len(result[name]) for name in _PER_EPOCH}
    figures = [result[name] for name in _FIGURES] + [
        figure for name in _PER_EPOCH for figure in result[name] if figure is not None
    ]
    if (
        len(lengths) != 1
        or 0 in lengths
        or not all(isinstance(result[name], str) for name in _WORDS)
        or not all(isinstance(figure, int | float) for figure in (*figures, *result["shape"]))
    ):
        raise ValueError("no result of a trial")


TIMES = frozenset(
    ("forward_ms", "backward_ms", "step_ms", "step_ms_p10", "step_ms_p90", "seconds", "finished")
)
"""The parts of a result that differ from run to run."""


def launch(accelerator: str, strategy: str, devices: str, nodes: int, precision: str) -> Fabric:
    """Lightning's Fabric for these settings; its various errors are reported in one line."""
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


# Consecutive trials mostly use the same data.
_load = functools.lru_cache(maxsize=2)(_data.load)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
