"""Hard Mish: x·min(k, max(0, x + 3))/k."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activation import Activation, OnnxWriter, Parameter
from ..forms import STANDARD, Form
from ._branch_fit import Minimum, leading
from ._inverse import centring
from ._limits import LARGEST, SMALLEST


def f(x: Tensor, k: float) -> Tensor:
    x = x.clamp_min(-3)
    return x * ((x + 3) / k).clamp_max(1)


def df(x: Tensor, k: float) -> Tensor:
    inside = torch.where(x <= -3, 0.0, (2 * x + 3) / k)
    return torch.where(x > k - 3, 1.0, inside)


def d2f(x: Tensor, k: float) -> Tensor:
    return torch.where((x <= -3) | (x > k - 3), 0.0, torch.full_like(x, 2 / k))


def df_y(y: Tensor, right: Tensor, saved: torch.dtype, k: float) -> Tensor:
    # y = ((x + 3/2)² − 9/4)/k on the quadratic part, so |f'| is 2·√((y − y_min)/k). If k < 3/2 the
    # minimum is at the joint, and there is no quadratic part to its right.
    kinked = k < 1.5
    shift, least = (0.0, 0.0) if kinked else centring(9 / (4 * k), saved)
    depth = 9 / (4 * k) + shift
    high = leading(depth, 24) if y.dtype == torch.float32 else depth
    above = ((y + high) + (depth - high)).clamp_min(least)
    size = 2 * (above / k).sqrt()
    straight = torch.ones_like(right) if kinked else y > k - 3
    left = torch.where(y == 0, 0.0, -size)
    return torch.where(right, torch.where(straight, 1.0, size), left)


def turn(k: float) -> float:
    return min(-1.5, k - 3)


def minimum(k: float) -> Minimum | None:
    if k <= 1.5:
        return None
    # f is the parabola only left of the joint.
    to_joint = (k - 1.5) ** 2 / k
    parabola = Minimum(-1.5, -9 / (4 * k), math.sqrt(1 / k))
    return replace(parabola, reach=min(parabola.reach, to_joint))


def _portable(x: Tensor, k: float) -> Tensor:
    if k == 6:
        return F.hardswish(x)
    # Divide first, or large x overflow. Both bounds must have one type, or the ONNX exporter fails.
    return x * ((x + 3).clamp(0.0, k) / k)


def to_onnx(write: OnnxWriter, k: float) -> Any:
    """x·HardSigmoid(x) with slope 1/k, which is HardSwish for k = 6."""
    return write.hard(1 / k, 3 / k)


def by_clip(write: OnnxWriter, k: float) -> Any:
    """x·(Clip(x + 3, 0, k)/k)."""
    part = write.clip(write("Add", write.x, 3.0), 0.0, k)
    return write("Mul", write.x, write("Mul", part, 1 / k))


activation = Activation(
    name="hard_mish",
    module_name="HardMish",
    formula="x·min(k, max(0, x + 3))/k",
    expression="x*Min(k, Max(0, x + 3))/k",
    source="hard forms of Mish, k = 5 and k = 3 as published; k = 6 is hardswish",
    forms=(
        Form(STANDARD, to_onnx, float32=1.4e-7, float16=9.4e-4),
        Form("clip", by_clip, float32=1.8e-7, float16=1.3e-3),
    ),
    ulp=3,
    made_of="polynomials",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=turn,
    minimum=minimum,
    portable=_portable,
    parameters=(
        Parameter(
            "k",
            5.0,
            "width of the quadratic part, which ends at x = k − 3; positive",
            positive=True,
            smallest=SMALLEST,
            largest=LARGEST,
        ),
    ),
    is_dead=True,
    published=(("hard Mish, k = 5", (5,)), ("hard Mish, k = 3", (3,)), ("hardswish", (6,))),
)
