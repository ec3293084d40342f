"""Swish: x·σ(beta·x), which is aptx with alpha 1, beta/2 and gamma 1/2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..activation import Activation, OnnxWriter, Parameter
from ..forms import STANDARD, Form
from . import aptx
from ._branch_fit import Minimum
from ._limits import LARGEST, SMALLEST
from .aptx import Value


def f(x: Tensor, beta: Value) -> Tensor:
    return aptx.f(x, 1.0, beta / 2, 0.5)


def df(x: Tensor, beta: Value) -> Tensor:
    return aptx.df(x, 1.0, beta / 2, 0.5)


def d2f(x: Tensor, beta: Value) -> Tensor:
    return aptx.d2f(x, 1.0, beta / 2, 0.5)


def dp(x: Tensor, beta: Value) -> tuple[Tensor]:
    return (aptx.dp(x, 1.0, beta / 2, 0.5)[1] / 2,)


def df_y(y: Tensor, right: Tensor, saved: torch.dtype, beta: float) -> Tensor:
    return aptx.df_y(y, right, saved, 1.0, beta / 2, 0.5)


def turn(beta: float) -> float:
    if beta <= 0:
        raise ValueError(f"mishkit.swish: it has a minimum where beta > 0 alone; beta is {beta:g}")
    return aptx.turn(1.0, beta / 2, 0.5)


def minimum(beta: float) -> Minimum:
    return aptx.minimum(1.0, beta / 2, 0.5)


def _portable(x: Tensor, beta: Value) -> Tensor:
    return x * torch.sigmoid(beta * x)


def to_onnx(write: OnnxWriter, beta: float) -> Any:
    """Swish."""
    return write.swish(beta)


def by_sigmoid(write: OnnxWriter, beta: float) -> Any:
    """x·Sigmoid(beta·x)."""
    return write("Mul", write.x, write("Sigmoid", write.scaled(write.x, beta)))


activation = Activation(
    name="swish",
    module_name="Swish",
    formula="x·σ(beta·x)",
    expression="x/(1 + exp(-beta*x))",
    source="Ramachandran, Zoph & Le 2017, Searching for Activation Functions (arXiv:1710.05941)",
    forms=(
        Form(STANDARD, to_onnx, float32=1.5e-7, float16=7.6e-4),
        Form("sigmoid", by_sigmoid, float32=1.5e-7, float16=7.6e-4),
    ),
    ulp=3,
    made_of="one exponential",
    f=f,
    df=df,
    d2f=d2f,
    dp=dp,
    df_y=df_y,
    turn=turn,
    minimum=minimum,
    portable=_portable,
    parameters=(
        Parameter(
            "beta",
            1.0,
            "sharpness: 1 gives SiLU, a large one tends to ReLU",
            smallest=SMALLEST,
            largest=LARGEST,
        ),
    ),
    published=(("SiLU", (1,)), ("APTx for Mish", (2,)), ("for GELU", (1.702,))),
)
