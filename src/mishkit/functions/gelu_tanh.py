"""Tanh form of GELU: x·σ(2u), u = √(2/π)·(x + 0.044715·x³)."""

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

FAR = 30.0
"""σ(−2u(FAR)) is 0 in float64."""
SCALE = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715


def f(x: Tensor) -> Tensor:
    x = x.clamp_min(-FAR)
    c = x.clamp_max(FAR)
    # x·σ(2u) equals x/2·(1 + tanh u), but without its cancellation for negative x.
    return x * torch.sigmoid(_twice_u(c))


def df(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, FAR)
    w, dw = _twice_u(x), _twice_du(x)
    return torch.sigmoid(w) * (1 + x * dw * torch.sigmoid(-w))


def d2f(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, FAR)
    w, dw = _twice_u(x), _twice_du(x)
    d2w = 6 * SCALE * CUBIC * x
    s, c = torch.sigmoid(w), torch.sigmoid(-w)
    return s * c * (2 * dw + x * (d2w + dw * dw * (c - s)))


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    return df_from_output("gelu_tanh", f, df, y, right, saved)


def _twice_u(x: Tensor) -> Tensor:
    return SCALE * (x + CUBIC * x * x * x)


def _twice_du(x: Tensor) -> Tensor:
    return SCALE * (1 + 3 * CUBIC * x * x)


def _portable(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def to_onnx(write: OnnxWriter) -> Any:
    """Gelu in its tanh form, or the formula if the opset doesn't have it."""
    if write.has("Gelu"):
        return write("Gelu", write.x, approximate="tanh")
    return by_tanh(write)


def by_tanh(write: OnnxWriter) -> Any:
    """x·(1 + Tanh(√(2/π)·(x + 0.044715·x³)))/2."""
    root = math.sqrt(2 / math.pi)
    slope = write("Add", write("Mul", write("Mul", write.x, write.x), 0.044715 * root), root)
    one_plus_tanh = write("Add", write("Tanh", write("Mul", write.x, slope)), 1.0)
    return write("Mul", write.x, write("Mul", one_plus_tanh, 0.5))


def by_sigmoid(write: OnnxWriter) -> Any:
    """x·Sigmoid(√(8/π)·(x + 0.044715·x³))."""
    root = math.sqrt(8 / math.pi)
    slope = write("Add", write("Mul", write("Mul", write.x, write.x), 0.044715 * root), root)
    return write("Mul", write.x, write("Sigmoid", write("Mul", write.x, slope)))


activation = Activation(
    name="gelu_tanh",
    module_name="GELUTanh",
    formula="x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))",
    expression="x/2*(1 + tanh(sqrt(2/pi)*(x + 44715*x**3/1000000)))",
    source="Hendrycks & Gimpel 2016, Gaussian Error Linear Units (arXiv:1606.08415)",
    forms=(
        Form(STANDARD, to_onnx, float32=1.6e-7, float16=9.2e-4),
        Form("tanh", by_tanh, float32=1.2e-7, float16=9.2e-4),
        Form("sigmoid", by_sigmoid, float32=1.5e-7, float16=7.7e-4),
    ),
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=MINIMA["gelu_tanh"].turn,
    minimum=MINIMA["gelu_tanh"],
    portable=_portable,
)
