"""Exact GELU: x·Φ(x), where Φ is the normal distribution function."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activation import Activation, OnnxWriter
from ..forms import STANDARD, Form
from ._df_y_tables import MINIMA
from ._inverse import df_from_output

FAR = 50.0
"""Φ(−FAR) and φ(FAR) are 0 in float64."""


def f(x: Tensor) -> Tensor:
    # F.gelu loses the left tail, overflows above 1.7e38 and gives NaN at +inf.
    return x.clamp_min(-FAR) * _cdf(x)


def df(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, FAR)
    return _cdf(x) + x * _pdf(x)


def d2f(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, FAR)
    return _pdf(x) * (2 - x * x)


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    return df_from_output("gelu", f, df, y, right, saved)


def _cdf(x: Tensor) -> Tensor:
    # erfc keeps the relative accuracy of the left tail, where 1 + erf cancels.
    return 0.5 * torch.erfc(x * -math.sqrt(0.5))


def _pdf(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


def to_onnx(write: OnnxWriter) -> Any:
    """Gelu, or the formula if the opset doesn't have it."""
    return write("Gelu", write.x) if write.has("Gelu") else by_erf(write)


def by_erf(write: OnnxWriter) -> Any:
    """x·(1 + Erf(x/√2))/2."""
    one_plus_erf = write("Add", write("Erf", write("Mul", write.x, math.sqrt(0.5))), 1.0)
    return write("Mul", write.x, write("Mul", one_plus_erf, 0.5))


activation = Activation(
    name="gelu",
    module_name="GELU",
    formula="x·Φ(x) = x/2·(1 + erf(x/√2))",
    expression="x*(1 + erf(x/sqrt(2)))/2",
    source="Hendrycks & Gimpel 2016, Gaussian Error Linear Units (arXiv:1606.08415)",
    forms=(
        Form(STANDARD, to_onnx, float32=9.1e-7, float16=8.9e-4),
        Form("erf", by_erf, float32=1.8e-7, float16=8.9e-4),
    ),
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=MINIMA["gelu"].turn,
    minimum=MINIMA["gelu"],
    portable=F.gelu,
    torch_function="gelu",
)
