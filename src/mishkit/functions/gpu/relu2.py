"""Squared ReLU: max(0, x)²."""

from __future__ import annotations

import triton
import triton.language as tl

from ._math import at_least
from ._twin import Twin


@triton.jit
def f(x, c, half: tl.constexpr):
    x = at_least(x, 0.0)
    return x * x


@triton.jit
def df(x, c, half: tl.constexpr):
    x = at_least(x, 0.0)
    return x + x


@triton.jit
def d2f(x, c, half: tl.constexpr):
    return tl.where(x <= 0, 0.0, 2.0)


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    """2·√y"""
    root = tl.sqrt(at_least(y, 0.0))
    return root + root


twin = Twin(f, df, d2f, df_y)
