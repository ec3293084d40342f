"""ELU: x right of 0, alpha·(exp(x) − 1) left of it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._math import FLOOR, at_least, at_most, exp, expm1
from ._twin import Twin


@triton.jit
def f(x, c, half: tl.constexpr):
    return tl.where(x > 0, x, c[0] * expm1(at_most(at_least(x, FLOOR), 0.0), half))


@triton.jit
def df(x, c, half: tl.constexpr):
    return tl.where(x > 0, 1.0, c[0] * exp(at_most(at_least(x, FLOOR), 0.0), half))


@triton.jit
def d2f(x, c, half: tl.constexpr):
    return tl.where(x > 0, 0.0, c[0] * exp(at_most(at_least(x, FLOOR), 0.0), half))


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    """y + alpha"""
    return tl.where(y > 0, 1.0, at_least(y + c[0], 0.0))


def numbers(alpha: float) -> tuple[float, ...]:
    return (alpha,)


def output_numbers(saved: torch.dtype, alpha: float) -> tuple[float, ...]:
    return (alpha,)


twin = Twin(f, df, d2f, df_y, numbers=numbers, output_numbers=output_numbers)
