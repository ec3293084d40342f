"""Leaky ReLU: x right of 0, negative_slope·x left of it."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from ._math import at_least
from ._twin import Twin

LARGEST_X = torch.finfo(torch.float32).max


@triton.jit
def f(x, c, half: tl.constexpr):
    return tl.where(x > 0, x, at_least(x, c[1]) * c[0])


@triton.jit
def df(x, c, half: tl.constexpr):
    return tl.where(x > 0, 1.0, c[0])


@triton.jit
def d2f(x, c, half: tl.constexpr):
    return tl.zeros_like(x)


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    return tl.where(y > 0, 1.0, c[0])


def numbers(negative_slope: float) -> tuple[float, ...]:
    """The slope, and the bound that x is raised to: a slope of 0 makes 0 of −∞ too."""
    return negative_slope, -math.inf if negative_slope else -LARGEST_X


def output_numbers(saved: torch.dtype, negative_slope: float) -> tuple[float, ...]:
    return (negative_slope,)


twin = Twin(f, df, d2f, df_y, numbers=numbers, output_numbers=output_numbers)
