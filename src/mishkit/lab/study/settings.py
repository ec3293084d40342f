"""What `mishkit compare` should compare and how, and the settings of one trial."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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


DATA_ROOT = Path("data")
OUTPUT = Path("mishkit-compare")
SHARED = tuple(
    f.name
    for f in dataclasses.fields(Trial)
    if f.name not in ("phase", "data", "model", "activation", "lr", "seed", "devices")
)
"""The fields that all trials of a comparison share."""


def option(
    default: Any,
    help: str,
    *,
    names: tuple[str, ...] = (),
    min: float | None = None,
    max: float | None = None,
    shown: str | None = None,
    text: str | None = None,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """A field that is also a command-line option.

    Parameters
    ----------
    names : tuple of str
        the option's names; by default the name of the field
    shown : str, optional
        the default in words, if its value would not be clear
    text, parse
        for an option whose text is converted to the field: its default text, and the parser
    """
    metadata = {"help": help, "names": names, "min": min, "max": max, "shown": shown}
    return field(default=default, metadata={**metadata, "text": text, "parse": parse})


def parse_rates(text: str) -> tuple[float, ...]:
    """Parse comma-separated learning rates."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise LabError(f'--lr takes learning rates with commas, 2e-3,5e-3, not "{text}"') from None


@dataclass(frozen=True)
class Settings:
    """What to compare, and how."""

    activations: tuple[str, ...] = option(
        contenders.DEFAULT,
        "An activation to compare; repeat the option for more. A name, or anything importable "
        "(torch.nn.GELU, package.module:function). An unknown name lists the names.",
        names=("--activation", "-a"),
        shown="ReLU in place, Mish by hand, torch's Mish, and mishkit's Mish, Mish in place and "
        "HMish",
    )
    data: tuple[str, ...] = option(
        ("mnist",),
        "A data set; repeat the option for more. Images: mnist, digits, fashion-mnist, folder:PATH "
        "(one subfolder for each class), torchvision:CLASS. Tables: sklearn:NAME, mlbench:NAME. "
        "Sentences: vader:NAME.",
        shown="mnist",
    )
    model: str = option(
        "auto",
        "The network: auto (seven convolutions for images, an MLP for tables, a transformer for "
        "sentences), timm:NAME, path/to/file.py:FUNCTION or package.module:FUNCTION.",
    )
    options: tuple[str, ...] = option(
        (),
        "KEY=VALUE, an argument of the function that builds the model; repeat the option for more.",
        names=("--option",),
    )
    data_root: Path = option(  # noqa: RUF009
        DATA_ROOT, "The folder with the data of torchvision, mlbench and vader."
    )
    download: bool = option(False, "Let torchvision download its data.")
    image_size: int | None = option(None, "Resize images to squares of this many pixels.", min=4)
    train_samples: int | None = option(None, "Train with this many samples.", min=2, shown="all")
    test_samples: int | None = option(None, "Test with this many samples.", min=1, shown="all")
    channels: int = option(
        16,
        "Channels of each layer of the built-in networks; an eighth of the MLP's units, a quarter "
        "of the transformer's width.",
        min=1,
    )
    epochs: int = option(5, "Passes over the training data.", min=1)
    seeds: int = option(
        5, "How often each activation is trained in the end, with one seed each.", min=1
    )
    first_seed: int = option(
        0,
        "The first seed. It also decides which samples are for training and which for testing.",
        names=("--seed",),
        min=0,
    )
    batch_size: int = option(64, "Samples in each step, over all devices.", min=1)
    lr: tuple[float, ...] = option(
        (5e-3, 1e-2, 2e-2, 4e-2),
        "Learning rates, separated by commas: the highest of AdamW's schedule. If there are "
        "several, each activation gets the rate that is best for it on part of the training data.",
        text="5e-3,1e-2,2e-2,4e-2",
        parse=parse_rates,
    )
    tuning_seeds: int = option(
        2,
        "How often each activation is trained with each learning rate, to find the best rate.",
        min=1,
    )
    target: tuple[float, ...] = option(
        (),
        "The test accuracy to reach, 0 to 1; once for all, or once for each --data.",
        min=0,
        max=1,
        shown="a point below the baseline",
    )
    baseline: str | None = option(
        None,
        "The activation that the others are compared with.",
        shown="the first ReLU, or the first",
    )
    threads: int | None = option(
        None, "Threads of PyTorch in each trial.", min=1, shown="PyTorch's choice"
    )
    workers: int | None = option(
        None,
        "How many trials run at the same time, each in its own process. Times get longer.",
        min=1,
        shown="1",
    )
    ray: str | None = option(
        None, "Run the trials on the Ray cluster at this address; local starts one here."
    )
    precision: str = option("32-true", "Lightning Fabric's precision, for instance bf16-mixed.")
    accelerator: str = option("auto", "Lightning Fabric's accelerator: cpu, cuda, mps, auto.")
    devices: str = option("1", "Lightning Fabric's devices: how many, or which.")
    strategy: str = option("auto", "Lightning Fabric's strategy: ddp, fsdp, auto.")
    output: Path = option(  # noqa: RUF009
        OUTPUT,
        "The folder that the report and its tables are written to.",
        names=("--output", "-o"),
    )
    fresh: bool = option(False, "Start again, and forget the trials in the folder.")

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
