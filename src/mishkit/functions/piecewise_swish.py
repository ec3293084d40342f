"""Piecewise swish: x·σ(x) left of 0, x·σ(2x) right of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._twin import Twin, device
from ..activation import Activation, OnnxWriter
from ..forms import STANDARD, Form
from . import silu
from ._df_y_tables import MINIMA
from ._inverse import df_from_output
from ._limits import FAR
from ._triton_math import (
    FAR_RIGHT,
    FLOOR,
    NEAR,
    at_least,
    at_most,
    branch_table,
    divide,
    exp,
    from_output,
)
from .silu import gpu_bend, gpu_rise

if TYPE_CHECKING:
    import triton.language as tl
    from triton.language import constexpr


def f(x: Tensor) -> Tensor:
    x = x.clamp_min(-FAR)
    return x * torch.sigmoid(_steepened(x))


# With z = c·x, c = 1 or 2, f is silu(z)/c, so its slope is that of silu at z.
def df(x: Tensor) -> Tensor:
    return silu.df(_steepened(x))


def d2f(x: Tensor) -> Tensor:
    return torch.where(x > 0, 2.0, 1.0) * silu.d2f(_steepened(x))


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    return df_from_output("silu", silu.f, silu.df, _steepened(y), right, saved)


def _steepened(x: Tensor) -> Tensor:
    return torch.where(x > 0, 2 * x, x)


def _portable(x: Tensor) -> Tensor:
    return x * torch.sigmoid(_steepened(x))


# ---- in Triton -----------------------------------------------------------------------------------


@device
def gpu_parts(x: Any, half: constexpr) -> Any:
    """x clamped where its exponential is 0, z = max(x, 2x), and exp(z)."""
    x = at_least(x, FLOOR)
    z = at_least(x + x, x)
    return x, z, exp(at_most(z, NEAR), half)


@device
def gpu_f(x: Any, c: Any, half: constexpr) -> Any:
    x, _z, e = gpu_parts(x, half)
    return x * divide(e, e + 1.0)


@device
def gpu_df(x: Any, c: Any, half: constexpr) -> Any:
    _x, z, e = gpu_parts(x, half)
    return gpu_rise(z, e)


@device
def gpu_d2f(x: Any, c: Any, half: constexpr) -> Any:
    x = at_most(at_least(x, FLOOR), FAR_RIGHT / 2)
    z = at_least(x + x, x)
    bend = gpu_bend(z, exp(z, half))
    return tl.where(x > 0, bend + bend, bend)


@device
def gpu_df_y(y: Any, right: Any, c: Any, table: constexpr, half: constexpr) -> Any:
    return from_output(at_least(y + y, y), right, table)


def to_onnx(write: OnnxWriter) -> Any:
    """x·Sigmoid(x + Relu(x))."""
    return write("Mul", write.x, write("Sigmoid", write("Add", write.x, write("Relu", write.x))))


activation = Activation(
    name="piecewise_swish",
    module_name="PiecewiseSwish",
    formula="x·σ(x) where x ≤ 0, x·σ(2x) where x > 0",
    expression="Piecewise((x/(1 + exp(-x)), x <= 0), (x/(1 + exp(-2*x)), True))",
    source="two swishes (arXiv:1710.05941) joined at 0, where both slopes are ½",
    forms=(Form(STANDARD, to_onnx, float32=1.5e-7, float16=7.4e-4),),
    ulp=3,
    made_of="one exponential",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=MINIMA["silu"].turn,
    minimum=MINIMA["silu"],
    portable=_portable,
    twin=Twin(gpu_f, gpu_df, gpu_d2f, gpu_df_y, table=partial(branch_table, "silu")),
)
