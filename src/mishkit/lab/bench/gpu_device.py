"""The GPU that `mishkit bench` times, and inputs on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import LabError
from ..code.roofline import GPU, GPUS
from .cases import SPREAD

DEVICE = "cuda"


@dataclass(frozen=True)
class Device:
    """The GPU that is timed."""

    name: str
    target: str
    """For example sm_90 or gfx942."""
    cache: int
    """Bytes of the last-level cache that is reported."""
    software: str

    @property
    def published(self) -> GPU | None:
        """The published GPU in the rooflines that runs the same code."""
        return next((gpu for gpu in GPUS if gpu.target == self.target), None)


def device() -> Device:
    """The current device. Raises LabError if there is none."""
    if not torch.cuda.is_available():
        raise LabError(
            "no GPU: torch.cuda.is_available() is False; with --paper, --device cuda needs none"
        )
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip is not None:
        target = properties.gcnArchName.partition(":")[0]
        software = f"ROCm {torch.version.hip}"
    else:
        target = f"sm_{properties.major}{properties.minor}"
        software = f"CUDA {torch.version.cuda}"
    return Device(properties.name, target, properties.L2_cache_size, software)


def normal(size: int | Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """N(0, SPREAD) on the device."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    shape = (size,) if isinstance(size, int) else tuple(size)
    return torch.randn(shape, generator=generator, device=DEVICE, dtype=dtype).mul_(SPREAD)
