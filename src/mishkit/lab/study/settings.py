"""What `mishkit compare` is asked to compare, and how."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import mishkit as mk

from .. import LabError
from ..common import contenders
from ..common.contenders import Contender
from . import trial as _trial
from .trial import Phase, Trial


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
        if self.is_parallel and (self.devices != "1" or under_torchrun()):
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
            "threads": self.resolved_threads,
            "data_root": str(self.data_root),
            "download": self.download,
        }

    @cached_property
    def _code(self) -> str:
        return _trial.code_of(self.model)

    @cached_property
    def resolved_threads(self) -> int:
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


def under_torchrun() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
