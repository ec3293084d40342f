"""Swish: x·σ(beta·x), which is aptx with alpha 1, beta/2 and gamma 1/2."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from . import aptx
from ._math import divide
from ._twin import Twin
from .aptx import block_numbers, d2f, df, df_y, parts
from .aptx import dp as aptx_dp


@triton.jit
def f(x, c, half: tl.constexpr):
    x, _within, e = parts(x, c, half)
    return x * divide(e, e + 1.0)  # aptx's f without the terms that are 0 or 1 here


@triton.jit
def trained_numbers(p):
    return block_numbers(1.0, p[0] * 0.5, 0.5, 1.0)


@triton.jit
def dp(x, c, half: tl.constexpr):
    _to_alpha, to_beta, _to_gamma = aptx_dp(x, c, half)
    return (to_beta * 0.5,)


def numbers(beta: float) -> tuple[float, ...]:
    return aptx.numbers(1.0, beta / 2, 0.5)


def output_numbers(saved: torch.dtype, beta: float) -> tuple[float, ...]:
    return aptx.output_numbers(saved, 1.0, beta / 2, 0.5)


def table(saved: torch.dtype, beta: float) -> Any:
    return aptx.table(saved, 1.0, beta / 2, 0.5)


twin = Twin(
    f,
    df,
    d2f,
    df_y,
    numbers=numbers,
    output_numbers=output_numbers,
    table=table,
    trained_numbers=trained_numbers,
    dp=dp,
)
