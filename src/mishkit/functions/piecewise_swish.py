"""Piecewise swish: x·σ(x) left of 0, x·σ(2x) right of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..activation import Activation, OnnxWriter
from ..forms import STANDARD, Form
from . import silu
from ._df_y_tables import MINIMA
from ._inverse import df_from_output
from ._limits import FAR


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
)
