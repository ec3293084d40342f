"""Quick GELU, which is swish with beta = 1.702: x·σ(1.702x)."""

from __future__ import annotations

from typing import Any

import torch

from ..quick_gelu import BETA
from . import aptx, swish
from ._twin import Twin


def numbers() -> tuple[float, ...]:
    return swish.numbers(BETA)


def output_numbers(saved: torch.dtype) -> tuple[float, ...]:
    return swish.output_numbers(saved, BETA)


def table(saved: torch.dtype) -> Any:
    return swish.table(saved, BETA)


twin = Twin(
    swish.f,
    aptx.df,
    aptx.d2f,
    aptx.df_y,
    numbers=numbers,
    output_numbers=output_numbers,
    table=table,
)
