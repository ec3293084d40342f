"""ReLU, the baseline: max(0, x)."""

from __future__ import annotations

import triton
import triton.language as tl

from ._twin import Twin


@triton.jit
def f(x, c, half: tl.constexpr):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def df(x, c, half: tl.constexpr):
    return tl.where(x <= 0, 0.0, 1.0)


@triton.jit
def d2f(x, c, half: tl.constexpr):
    return tl.zeros_like(x)


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    return tl.where(y <= 0, 0.0, 1.0)


twin = Twin(f, df, d2f, df_y)
