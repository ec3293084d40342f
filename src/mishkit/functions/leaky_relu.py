"""Leaky ReLU: x right of 0, negative_slope·x left of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activation import Activation, OnnxWriter, Parameter
from ..forms import STANDARD, Form
from ._limits import LARGEST, SMALLEST


def f(x: Tensor, negative_slope: float) -> Tensor:
    # A slope of 0 makes the left side 0, at −∞ too.
    left = x.clamp_min(-torch.finfo(x.dtype).max) if negative_slope == 0 else x
    return torch.where(x > 0, x, negative_slope * left)


def df(x: Tensor, negative_slope: float) -> Tensor:
    # Like torch, for 0 and NaN too.
    return torch.where(x > 0, 1.0, torch.full_like(x, negative_slope))


def d2f(x: Tensor, negative_slope: float) -> Tensor:
    return torch.zeros_like(x)


def check_output(negative_slope: float) -> None:
    """With a negative slope on the left, f is positive on both sides."""
    if negative_slope < 0:
        raise ValueError(
            "mishkit.leaky_relu: its output gives its gradient where negative_slope >= 0 alone; "
            f"negative_slope is {negative_slope:g}"
        )


def df_y(y: Tensor, right: Tensor, saved: torch.dtype, negative_slope: float) -> Tensor:
    return df(y, negative_slope)


def to_onnx(write: OnnxWriter, negative_slope: float) -> Any:
    """LeakyRelu."""
    return write("LeakyRelu", write.x, alpha=negative_slope)


def by_relu(write: OnnxWriter, negative_slope: float) -> Any:
    """Relu(x) + negative_slope·Min(x, 0)."""
    left = write("Mul", write("Min", write.x, 0.0), negative_slope)
    return write("Add", write("Relu", write.x), left)


activation = Activation(
    name="leaky_relu",
    module_name="LeakyReLU",
    formula="x where x > 0, negative_slope·x where x ≤ 0",
    expression="Piecewise((x, x > 0), (negative_slope*x, True))",
    source="Maas, Hannun & Ng 2013, Rectifier Nonlinearities (ICML 2013 workshop)",
    forms=(
        Form(STANDARD, to_onnx, float32=8.4e-8, float16=4.8e-4),
        Form("relu", by_relu, float32=8.4e-8, float16=4.8e-4),
    ),
    ulp=3,
    made_of="lines",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=None,
    minimum=None,
    check_output=check_output,
    portable=F.leaky_relu,
    parameters=(
        Parameter(
            "negative_slope",
            0.01,
            "the slope left of 0; 0 gives ReLU",
            smallest=SMALLEST,
            largest=LARGEST,
        ),
    ),
    published=(("Darknet's", (0.1,)), ("DCGAN's", (0.2,))),
    torch_function="leaky_relu",
)
