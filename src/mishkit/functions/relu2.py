"""Squared ReLU: max(0, x)²."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..activation import Activation, OnnxWriter
from ..forms import STANDARD, Form


def f(x: Tensor) -> Tensor:
    return torch.relu(x).square()


def df(x: Tensor) -> Tensor:
    return 2 * torch.relu(x)


def d2f(x: Tensor) -> Tensor:
    return torch.where(x <= 0, 0.0, torch.full_like(x, 2))


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    return 2 * y.clamp_min(0).sqrt()


def to_onnx(write: OnnxWriter) -> Any:
    """Relu(x)·Relu(x)."""
    positive = write("Relu", write.x)
    return write("Mul", positive, positive)


activation = Activation(
    name="relu2",
    module_name="ReLUSquared",
    formula="max(0, x)²",
    expression="Max(0, x)**2",
    source="So et al. 2021, Primer: Searching for Efficient Transformers (arXiv:2109.08668)",
    forms=(Form(STANDARD, to_onnx, float32=6.1e-8, float16=4.7e-4),),
    ulp=3,
    made_of="polynomials",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=None,
    minimum=None,
    portable=f,
    is_dead=True,
)
