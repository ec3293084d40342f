"""Softplus, a baseline: ln(1 + exp(beta·x)) / beta."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activation import Activation, OnnxWriter, Parameter
from ..forms import STANDARD, Form
from ._limits import LARGEST, SMALLEST

LINEAR = 60.0
"""The z above which ln(1 + exp(z)) equals z in every dtype; exp(z) is far from overflowing."""
LEAST_THRESHOLD = 14.0
"""The smallest threshold for which the output determines the gradient: see `check_output`."""


def f(x: Tensor, beta: float, threshold: float) -> Tensor:
    return F.softplus(x, beta, min(threshold, LINEAR))


def df(x: Tensor, beta: float, threshold: float) -> Tensor:
    z = beta * x
    return torch.where(z > threshold, 1.0, torch.sigmoid(z))


def d2f(x: Tensor, beta: float, threshold: float) -> Tensor:
    z = beta * x
    return torch.where(z > threshold, 0.0, beta * torch.sigmoid(z) * torch.sigmoid(-z))


def check_output(beta: float, threshold: float) -> None:
    """At its threshold t, beta·f drops from ln(1 + exp(t)) to t. Outputs in between belong to two
    inputs, whose slopes differ by at most exp(−t). That is 9e-7 for the smallest threshold
    accepted.
    """
    if threshold < LEAST_THRESHOLD:
        raise ValueError(
            f"mishkit.softplus: its output gives its gradient where threshold >= "
            f"{LEAST_THRESHOLD:g} alone, as it jumps there; threshold is {threshold:g}"
        )


def df_y(y: Tensor, right: Tensor, saved: torch.dtype, beta: float, threshold: float) -> Tensor:
    z = beta * y
    # σ = 1 − exp(−softplus) loses all its digits in the tail; expm1 keeps every one.
    return torch.where(z > threshold, 1.0, -torch.expm1(-z))


def to_onnx(write: OnnxWriter, beta: float, threshold: float) -> Any:
    """Softplus, with scaled input and output."""
    z = write.scaled(write.x, beta)
    return _below(write, z, write.scaled(write("Softplus", z), 1 / beta), threshold)


def by_sigmoid(write: OnnxWriter, beta: float, threshold: float) -> Any:
    """Relu(z) − Log(Sigmoid(Abs(z))) with z = beta·x, over beta."""
    z = write.scaled(write.x, beta)
    log_sigmoid = write("Log", write("Sigmoid", write("Abs", z)))
    y = write.scaled(write("Sub", write("Relu", z), log_sigmoid), 1 / beta)
    return _below(write, z, y, threshold)


def _below(write: OnnxWriter, z: Any, y: Any, threshold: float) -> Any:
    """x where z is above the threshold. From 20 on ln(1 + exp(z)) is z anyway, to within 2e-9."""
    if threshold >= 20:
        return y
    return write("Where", write("Greater", z, threshold), write.x, y)


activation = Activation(
    name="softplus",
    module_name="Softplus",
    formula="ln(1 + exp(beta·x)) / beta, and x itself where beta·x > threshold",
    expression="Piecewise((x, beta*x > threshold), (log(1 + exp(beta*x))/beta, True))",
    source="Dugas et al. 2001, Incorporating Second-Order Functional Knowledge",
    forms=(
        Form(STANDARD, to_onnx, float32=8.8e-8, float16=5.2e-4),
        Form("sigmoid", by_sigmoid, float32=1.7e-7, float16=9.9e-4),
    ),
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=None,
    minimum=None,
    check_output=check_output,
    portable=f,
    parameters=(
        Parameter(
            "beta", 1.0, "sharpness; not zero", nonzero=True, smallest=SMALLEST, largest=LARGEST
        ),
        Parameter("threshold", 20.0, "beta·x above which x is returned as it is", infinite=True),
    ),
    torch_function="softplus",
)
