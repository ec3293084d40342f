"""ReLU6: min(6, max(0, x))."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activation import Activation, OnnxWriter
from ..forms import STANDARD, Form

TOP = 6.0


def f(x: Tensor) -> Tensor:
    return x.clamp(0, TOP)


def df(x: Tensor) -> Tensor:
    # Like torch: 0 at 0 and at 6, and NaN inputs let the gradient through.
    return torch.where((x <= 0) | (x >= TOP), 0.0, 1.0).to(x.dtype)


def d2f(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    return df(y)


def to_onnx(write: OnnxWriter) -> Any:
    """Clip(x, 0, 6)."""
    return write.clip(write.x, 0.0, TOP)


def by_relu(write: OnnxWriter) -> Any:
    """Min(Relu(x), 6)."""
    return write("Min", write("Relu", write.x), TOP)


activation = Activation(
    name="relu6",
    module_name="ReLU6",
    formula="min(6, max(0, x))",
    expression="Min(6, Max(0, x))",
    source="Krizhevsky 2010, Convolutional Deep Belief Networks on CIFAR-10",
    forms=(
        Form(STANDARD, to_onnx, float32=0.0, float16=0.0),
        Form("relu", by_relu, float32=0.0, float16=0.0),
    ),
    ulp=3,
    made_of="lines",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=None,
    minimum=None,
    portable=F.relu6,
    torch_function="relu6",
    is_dead=True,
)
