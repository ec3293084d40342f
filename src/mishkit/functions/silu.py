"""SiLU, also called swish: x·σ(x)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activation import Activation, OnnxWriter
from ..forms import STANDARD, Form
from ._df_y_tables import MINIMA
from ._inverse import df_from_output
from ._limits import FAR


def f(x: Tensor) -> Tensor:
    return F.silu(x.clamp_min(-FAR))


def df(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, FAR)
    s = torch.sigmoid(x)
    return s * (1 + x * torch.sigmoid(-x))


def d2f(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, FAR)
    s, c = torch.sigmoid(x), torch.sigmoid(-x)
    return s * c * (2 + x * (c - s))


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    return df_from_output("silu", f, df, y, right, saved)


def to_onnx(write: OnnxWriter) -> Any:
    """Swish with beta = 1."""
    return write.swish(1.0)


def by_sigmoid(write: OnnxWriter) -> Any:
    """x·Sigmoid(x)."""
    return write("Mul", write.x, write("Sigmoid", write.x))


activation = Activation(
    name="silu",
    module_name="SiLU",
    formula="x·σ(x)",
    expression="x/(1 + exp(-x))",
    source="Elfwing, Uchibe & Doya 2018, Sigmoid-Weighted Linear Units (arXiv:1702.03118)",
    forms=(
        Form(STANDARD, to_onnx, float32=1.5e-7, float16=7.4e-4),
        Form("sigmoid", by_sigmoid, float32=1.5e-7, float16=7.4e-4),
    ),
    ulp=3,
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=MINIMA["silu"].turn,
    minimum=MINIMA["silu"],
    portable=F.silu,
    torch_function="silu",
)
