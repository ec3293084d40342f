"""Softplus, a baseline: ln(1 + exp(beta·x)) / beta."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._math import FLOOR, at_least, divide, exp, expm1, log1p
from ._twin import Twin


@triton.jit
def parts(x, c, half: tl.constexpr):
    """z = beta·x and exp(−|z|), with c = (beta, threshold, 1/beta)."""
    z = c[0] * x
    return z, exp(at_least(-tl.abs(z), FLOOR), half)


@triton.jit
def f(x, c, half: tl.constexpr):
    z, a = parts(x, c, half)
    return tl.where(z > c[1], x, (at_least(z, 0.0) + log1p(a, half)) * c[2])


@triton.jit
def df(x, c, half: tl.constexpr):
    z, a = parts(x, c, half)
    return tl.where(z > c[1], 1.0, divide(tl.where(z < 0, a, 1.0), a + 1.0))


@triton.jit
def d2f(x, c, half: tl.constexpr):
    z, a = parts(x, c, half)
    r = divide(1.0, a + 1.0)
    return tl.where(z > c[1], 0.0, c[0] * a * r * r)


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    """1 − exp(−beta·y)"""
    z = c[0] * y
    return tl.where(z > c[1], 1.0, -expm1(at_least(-z, FLOOR), half))


def numbers(beta: float, threshold: float) -> tuple[float, ...]:
    return beta, threshold, 1 / beta


def output_numbers(saved: torch.dtype, beta: float, threshold: float) -> tuple[float, ...]:
    return beta, threshold


twin = Twin(f, df, d2f, df_y, numbers=numbers, output_numbers=output_numbers)
