"""Hard-swish, which is hard_mish with k = 6: x·min(6, max(0, x + 3))/6."""

from __future__ import annotations

import torch

from ..hardswish import K
from . import hard_mish
from ._twin import Twin


def numbers() -> tuple[float, ...]:
    return hard_mish.numbers(K)


def output_numbers(saved: torch.dtype) -> tuple[float, ...]:
    return hard_mish.output_numbers(saved, K)


twin = Twin(
    hard_mish.f,
    hard_mish.df,
    hard_mish.d2f,
    hard_mish.df_y,
    numbers=numbers,
    output_numbers=output_numbers,
)
