"""Hard-swish, which is hard_mish with k = 6: x·min(6, max(0, x + 3))/6."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activation import Activation, OnnxWriter
from ..forms import STANDARD, Form
from . import hard_mish

K = 6.0


def f(x: Tensor) -> Tensor:
    return hard_mish.f(x, K)


def df(x: Tensor) -> Tensor:
    return hard_mish.df(x, K)


def d2f(x: Tensor) -> Tensor:
    return hard_mish.d2f(x, K)


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    return hard_mish.df_y(y, right, saved, K)


def to_onnx(write: OnnxWriter) -> Any:
    """HardSwish."""
    return write.hard(1 / 6, 0.5)


def by_clip(write: OnnxWriter) -> Any:
    """x·(Clip(x + 3, 0, 6)/6)."""
    return hard_mish.by_clip(write, K)


activation = Activation(
    name="hardswish",
    module_name="Hardswish",
    formula="x·min(6, max(0, x + 3))/6",
    expression="x*Min(6, Max(0, x + 3))/6",
    source="Howard et al. 2019, Searching for MobileNetV3 (arXiv:1905.02244)",
    forms=(
        Form(STANDARD, to_onnx, float32=1.4e-7, float16=9.2e-4),
        Form("clip", by_clip, float32=1.8e-7, float16=1.1e-3),
    ),
    ulp=3,
    made_of="polynomials",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=hard_mish.turn(K),
    minimum=hard_mish.minimum(K),
    portable=F.hardswish,
    torch_function="hardswish",
    is_dead=True,
)
