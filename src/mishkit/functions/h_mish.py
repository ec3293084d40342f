"""H-Mish: (x/2)·min(2, max(0, x + 2))."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..activation import Activation, OnnxWriter
from ..forms import STANDARD, Form
from ._branch_fit import Minimum
from ._inverse import centring

MINIMUM = Minimum(-1.0, -0.5, math.sqrt(0.5))


def f(x: Tensor) -> Tensor:
    x = x.clamp_min(-2)
    return 0.5 * x * (x + 2).clamp_max(2)


def df(x: Tensor) -> Tensor:
    return torch.where(x <= -2, 0.0, x.clamp_max(0) + 1)


def d2f(x: Tensor) -> Tensor:
    return torch.where((x <= -2) | (x > 0), 0.0, torch.ones_like(x))


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    # y = ((x + 1)² − 1)/2 on the quadratic part; y = 0 on the left is the flat part.
    shift, least = centring(0.5, saved)
    size = (2 * ((y + 0.5) + shift).clamp_min(least)).clamp_max(1).sqrt()
    return torch.where(right, size, torch.where(y == 0, 0.0, -size))


def _portable(x: Tensor) -> Tensor:
    return 0.5 * x * (x + 2).clamp(0, 2)


def to_onnx(write: OnnxWriter) -> Any:
    """x·HardSigmoid(x) with slope 1/2."""
    return write.hard(0.5, 1.0)


def by_clip(write: OnnxWriter) -> Any:
    """x·(Clip(x + 2, 0, 2)/2)."""
    part = write.clip(write("Add", write.x, 2.0), 0.0, 2.0)
    return write("Mul", write.x, write("Mul", part, 0.5))


activation = Activation(
    name="h_mish",
    module_name="HMish",
    formula="x/2·min(2, max(0, x + 2))",
    expression="x/2*Min(2, Max(0, x + 2))",
    source="Misra 2019, H-Mish (github.com/digantamisra98/H-Mish)",
    forms=(
        Form(STANDARD, to_onnx, float32=4.7e-8, float16=3.8e-4),
        Form("clip", by_clip, float32=4.7e-8, float16=3.8e-4),
    ),
    ulp=3,
    made_of="polynomials",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=MINIMUM.turn,
    minimum=MINIMUM,
    portable=_portable,
    is_dead=True,
)
