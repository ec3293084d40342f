"""Mish: x·tanh(ln(1 + eˣ)) = x·n/(n + 2) with e = eˣ, n = e(e + 2)."""

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

NEAR = 20.0
"""Above this, n/(n + 2) rounds to 1 in float64; clamping here keeps n finite in float32."""


def f(x: Tensor) -> Tensor:
    x = x.clamp_min(-FAR)
    e = torch.exp(x.clamp_max(NEAR))
    n = e * (e + 2)
    return x * (n / (n + 2))


def df(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, NEAR)
    e = torch.exp(x)
    n = e * (e + 2)
    r = 1 / (n + 2)
    return r * (n + 4 * x * (e * e + e) * r)


def d2f(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, NEAR)
    e = torch.exp(x)
    n = e * (e + 2)
    r = 1 / (n + 2)
    s, t = e / (1 + e), n * r
    return 4 * e * (1 + e) * r * r * (2 + x * (1 - s * (1 + 2 * t)))


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    return df_from_output("mish", f, df, y, right, saved)


def to_onnx(write: OnnxWriter) -> Any:
    """Mish, or x·Tanh(Softplus(x)) if the opset doesn't have it."""
    if write.has("Mish"):
        return write("Mish", write.x)
    return write("Mul", write.x, write("Tanh", write("Softplus", write.x)))


def by_sigmoid(write: OnnxWriter) -> Any:
    """x·u/(2 − u) with u = s·(2 − s) and s = Sigmoid(x): nothing overflows, in any dtype."""
    s = write("Sigmoid", write.x)
    u = write("Mul", s, write("Sub", 2.0, s))
    return write("Div", write("Mul", write.x, u), write("Sub", 2.0, u))


activation = Activation(
    name="mish",
    module_name="Mish",
    formula="x·tanh(ln(1 + eˣ))",
    expression="x*tanh(log(1 + exp(x)))",
    source="Misra 2019, Mish: A Self Regularized Non-Monotonic Activation (arXiv:1908.08681)",
    forms=(
        Form(STANDARD, to_onnx, float32=1.1e-7, float16=7.6e-4),
        Form("sigmoid", by_sigmoid, float32=3.4e-7, float16=2.5e-3),
    ),
    ulp=3,
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=MINIMA["mish"].turn,
    minimum=MINIMA["mish"],
    portable=F.mish,
    torch_function="mish",
)
