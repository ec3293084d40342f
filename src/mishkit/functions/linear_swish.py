"""Linear swish: 2x·σ(1.25x) left of 0, x right of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..activation import Activation, OnnxWriter
from ..forms import STANDARD, Form
from . import silu
from ._branch_fit import Minimum
from ._df_y_tables import MINIMA
from ._inverse import df_from_output
from ._limits import FAR

BETA = 1.25
_OF_SILU = MINIMA["silu"]
MINIMUM = Minimum(_OF_SILU.turn / BETA, 2 / BETA * _OF_SILU.y, math.sqrt(2 * BETA) * _OF_SILU.bend)


# With z = BETA·x, the left part is 2·silu(z)/BETA.
def f(x: Tensor) -> Tensor:
    left = x.clamp(-FAR, 0)
    return torch.where(x > 0, x, 2 * left * torch.sigmoid(BETA * left))


def df(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, 2 * silu.df(BETA * x))


def d2f(x: Tensor) -> Tensor:
    return torch.where(x > 0, 0.0, 2 * BETA * silu.d2f(BETA * x))


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    left = df_from_output("silu", silu.f, silu.df, y.clamp_max(0), right, saved, BETA / 2)
    return torch.where(right & (y >= 0), 1.0, 2 * left)


def _portable(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 2 * x * torch.sigmoid(BETA * x))


def to_onnx(write: OnnxWriter) -> Any:
    """x·Min(2·Sigmoid(1.25·x), 1)."""
    weight = write("Mul", write("Sigmoid", write("Mul", write.x, 1.25)), 2.0)
    return write("Mul", write.x, write("Min", weight, 1.0))


activation = Activation(
    name="linear_swish",
    module_name="LinearSwish",
    formula="2x·σ(1.25x) where x ≤ 0, x where x > 0",
    expression="Piecewise((2*x/(1 + exp(-5*x/4)), x <= 0), (x, True))",
    source="a swish (arXiv:1710.05941) of slope 1 at 0, continued by a straight line",
    forms=(Form(STANDARD, to_onnx, float32=9.8e-8, float16=5.1e-4),),
    ulp=3,
    made_of="one exponential",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=MINIMUM.turn,
    minimum=MINIMUM,
    portable=_portable,
)
