"""ReLU6: min(6, max(0, x))."""

from __future__ import annotations

import triton
import triton.language as tl

from .. import relu6
from ._constants import constant
from ._math import at_least, at_most
from ._twin import Twin

TOP = constant(relu6.TOP)


@triton.jit
def f(x, c, half: tl.constexpr):
    return at_most(at_least(x, 0.0), TOP)


@triton.jit
def df(x, c, half: tl.constexpr):
    return tl.where((x <= 0) | (x >= TOP), 0.0, 1.0)


@triton.jit
def d2f(x, c, half: tl.constexpr):
    return tl.zeros_like(x)


@triton.jit
def df_y(y, right, c, table: tl.constexpr, half: tl.constexpr):
    return tl.where((y <= 0) | (y >= TOP), 0.0, 1.0)


twin = Twin(f, df, d2f, df_y)
