"""What `mishkit compare` should compare and how, and the settings of one trial."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

import mishkit as mk

from .. import LabError
from ..common import contenders
from ..common.contenders import Contender

Phase = Literal["tune", "final"]
"""Tuning trials are judged on a part of the training data, final trials on the test data."""


@dataclass(frozen=True)
class Trial:
    """The settings of one training."""

    phase: Phase
    data: str
    model: str
    activation: str
    lr: float
    """The peak of the learning rate schedule."""
    seed: int
    """Determines the weights and the order of the samples, the same for every activation."""
    options: tuple[str, ...] = ()
    """Further arguments for building the model, as "key=value"."""
    code: str = ""
    """The digest of the file that defines the model, if there is one."""
    channels: int = 16
    epochs: int = 5
    batch_size: int = 64
    data_seed: int = 0
    """Determines how the data is split."""
    train_samples: int | None = None
    test_samples: int | None = None
    image_size: int | None = None
    precision: str = "32-true"
    accelerator: str = "auto"
    strategy: str = "auto"
    devices: int = 1
    """The number of devices over which one training is spread."""
    threads: int = 1
    data_root: str = "data"
    download: bool = False

    @property
    def id(self) -> str:
        """Eight hexadecimal digits that identify all settings, except where the data is stored."""
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


def code_of(model: str) -> str:
    """The digest of the file in "path/to/file.py:function", so that changes to it are noticed."""
    place, _, _ = model.rpartition(":")
    if not place.endswith(".py"):
        return ""
    try:
        return hashlib.sha256(Path(place).read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise LabError(f"{place} can't be read: {error.strerror}") from None


SHARED = tuple(
    f.name
    for f in dataclasses.fields(Trial)
    if f.name not in ("phase", "data", "model", "activation", "lr", "seed", "devices")
)
"""The fields that all trials of a comparison share."""


def parse_rates(text: str) -> tuple[float, ...]:
    """Parse comma-separated learning rates."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise LabError(f'--lr takes learning rates with commas, 2e-3,5e-3, not "{text}"') from None


@dataclass(frozen=True)
class Settings:
    """What to compare, and how. `mishkit compare --help` describes each field."""

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
    batch_size: int = 64
    lr: tuple[float, ...] = (5e-3, 1e-2, 2e-2, 4e-2)
    tuning_seeds: int = 2
    target: tuple[float, ...] = ()
    baseline: str | None = None
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
        """Raise LabError for mistakes that no trial would notice."""
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
        """What all trials of a sweep share, including the machine their times belong to."""
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
        """The threads of each trial; trials that run in parallel share the cores."""
        if self.threads is not None:
            return self.threads
        if self.ray is not None:
            return max(1, _cores() // self.workers) if self.workers else 1
        if self.is_parallel:
            return max(1, _cores() // self.worker_count)
        return torch.get_num_threads()

    def _shared(self) -> dict[str, Any]:
        """The fields of every trial that are determined by these settings."""
        resolved = {
            "code": self._code,
            "data_seed": self.first_seed,
            "threads": self.resolved_threads,
            "data_root": str(self.data_root),
        }
        return {name: resolved.get(name, getattr(self, name, None)) for name in SHARED}

    @cached_property
    def _code(self) -> str:
        return code_of(self.model)

    @cached_property
    def resolved_threads(self) -> int:
        return self.thread_count  # cached, since a trial may change what PyTorch reports


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def under_torchrun() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()
