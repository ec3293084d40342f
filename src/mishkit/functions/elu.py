"""ELU: x right of 0, alpha·(exp(x) − 1) left of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activation import Activation, OnnxWriter, Parameter
from ..forms import STANDARD, Form
from ._limits import LARGEST, SMALLEST


def f(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1(x.clamp_max(0)))


def df(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, 1.0, alpha * torch.exp(x.clamp_max(0)))


def d2f(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, 0.0, alpha * torch.exp(x.clamp_max(0)))


def check_output(alpha: float) -> None:
    """With alpha < 0, f is positive on both sides."""
    if alpha < 0:
        raise ValueError(
            f"mishkit.elu: its output gives its gradient where alpha >= 0 alone; alpha is {alpha:g}"
        )


def df_y(y: Tensor, right: Tensor, saved: torch.dtype, alpha: float) -> Tensor:
    # Rounding may take y to just below −alpha.
    return torch.where(y > 0, 1.0, (y + alpha).clamp_min(0))


def to_onnx(write: OnnxWriter, alpha: float) -> Any:
    """Elu."""
    return write("Elu", write.x, alpha=alpha)


def by_exp(write: OnnxWriter, alpha: float) -> Any:
    """Relu(x) + alpha·(Exp(Min(x, 0)) − 1)."""
    left = write("Sub", write("Exp", write("Min", write.x, 0.0)), 1.0)
    return write("Add", write("Relu", write.x), write.scaled(left, alpha))


activation = Activation(
    name="elu",
    module_name="ELU",
    formula="x where x > 0, alpha·(exp(x) − 1) where x ≤ 0",
    expression="Piecewise((x, x > 0), (alpha*(exp(x) - 1), True))",
    source="Clevert, Unterthiner & Hochreiter 2015, Exponential Linear Units (arXiv:1511.07289)",
    forms=(
        Form(STANDARD, to_onnx, float32=6.5e-8, float16=2.6e-4),
        Form("exp", by_exp, float32=5.2e-8, float16=3.9e-4),
    ),
    made_of="one exponential",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=None,
    minimum=None,
    check_output=check_output,
    portable=F.elu,
    parameters=(
        Parameter(
            "alpha",
            1.0,
            "the depth that the left side falls to; 0 gives ReLU",
            smallest=SMALLEST,
            largest=LARGEST,
        ),
    ),
    torch_function="elu",
)
