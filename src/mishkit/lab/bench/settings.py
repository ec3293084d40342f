"""What `mishkit bench` should time, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mishkit.activation import DTYPES as _DTYPES
from mishkit.functions import ACTIVATIONS

from .. import LabError
from ..common.errors import check_known

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES}
DEVICES = ("cpu", "cuda")
GPU_DTYPES = ("float32", "bfloat16", "float16")
GPU_SIZES = (1 << 20, 1 << 24, 1 << 27)
"""The default sizes on a GPU; the last one exceeds every cache, at 256 MiB and more."""
UNITS = {"": 1, "ki": 1 << 10, "mi": 1 << 20}
QUICK = 0.2
"""The fraction of the usual time that a quick run takes."""


@dataclass(frozen=True)
class Settings:
    """What to time, and for how long."""

    functions: Sequence[str] = tuple(ACTIVATIONS)
    dtypes: Sequence[str] = ("float32", "bfloat16")
    sizes: Sequence[int] = (1 << 16, 1 << 20, 1 << 24)
    threads: Sequence[int] = (1, 2)
    device: str = "cpu"
    quick: bool = False
    paper: bool = False

    def __post_init__(self) -> None:
        check_known("function", self.functions, ACTIVATIONS)
        check_known("dtype", self.dtypes, DTYPES)
        check_known("device", [self.device], DEVICES)
        if self.paper and self.device == "cpu":
            raise LabError("--paper is about GPU kernels: it wants --device cuda")
        if not self.sizes or min(self.sizes) < 1 or not self.threads or min(self.threads) < 1:
            raise LabError("sizes and threads must be positive")


def parse_numbers(text: str) -> tuple[int, ...]:
    """For example "64Ki,1Mi,16" -> (65536, 1048576, 16)."""
    return tuple(_parse_number(part.strip().lower()) for part in text.split(","))


def _parse_number(text: str) -> int:
    digits = text.rstrip("kim")
    unit = text[len(digits) :]
    if not digits.strip().isdecimal() or unit not in UNITS:
        raise LabError(f"{text!r} is not a count; write 16, 64Ki or 1Mi")
    return int(digits) * UNITS[unit]
