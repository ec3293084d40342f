"""Quick GELU, the GELU of CLIP, which is swish with beta = 1.702: x·σ(1.702x)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..activation import Activation, OnnxWriter
from ..forms import STANDARD, Form
from . import swish

BETA = 1.702


def f(x: Tensor) -> Tensor:
    return swish.f(x, BETA)


def df(x: Tensor) -> Tensor:
    return swish.df(x, BETA)


def d2f(x: Tensor) -> Tensor:
    return swish.d2f(x, BETA)


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    return swish.df_y(y, right, saved, BETA)


def _portable(x: Tensor) -> Tensor:
    return x * torch.sigmoid(BETA * x)


def to_onnx(write: OnnxWriter) -> Any:
    """Swish with beta = 1.702."""
    return write.swish(BETA)


def by_sigmoid(write: OnnxWriter) -> Any:
    """x·Sigmoid(1.702·x)."""
    return swish.by_sigmoid(write, BETA)


activation = Activation(
    name="quick_gelu",
    module_name="QuickGELU",
    formula="x·σ(1.702x)",
    expression="x/(1 + exp(-1702*x/1000))",
    source="Hendrycks & Gimpel 2016, Gaussian Error Linear Units (arXiv:1606.08415)",
    forms=(
        Form(STANDARD, to_onnx, float32=1.5e-7, float16=7.6e-4),
        Form("sigmoid", by_sigmoid, float32=1.5e-7, float16=7.6e-4),
    ),
    ulp=3,
    made_of="one exponential",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=swish.turn(BETA),
    minimum=swish.minimum(BETA),
    portable=_portable,
)
