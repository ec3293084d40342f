"""ReLU, the baseline: max(0, x)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..activation import Activation, OnnxWriter
from ..forms import STANDARD, Form


def f(x: Tensor) -> Tensor:
    return torch.relu(x)


def df(x: Tensor) -> Tensor:
    # Like torch: 0 at 0, and NaN inputs let the gradient through.
    return torch.where(x <= 0, 0.0, 1.0).to(x.dtype)


def d2f(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    return df(y)


def to_onnx(write: OnnxWriter) -> Any:
    """Relu."""
    return write("Relu", write.x)


activation = Activation(
    name="relu",
    module_name="ReLU",
    formula="max(0, x)",
    expression="Max(0, x)",
    source="Nair & Hinton 2010, Rectified Linear Units Improve Restricted Boltzmann Machines",
    forms=(Form(STANDARD, to_onnx, float32=0.0, float16=0.0),),
    ulp=3,
    made_of="lines",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=None,
    minimum=None,
    portable=torch.relu,
    torch_function="relu",
    is_dead=True,
)
