"""Hard Mish: x·min(k, max(0, x + 3))/k."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._twin import Twin, device
from ..activation import Activation, OnnxWriter, Parameter
from ..forms import STANDARD, Form
from ._branch_fit import Minimum, leading
from ._inverse import centring
from ._limits import LARGEST, SMALLEST
from ._triton_math import at_least, at_most

if TYPE_CHECKING:
    import triton.language as tl
    from triton.language import constexpr


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


# ---- in Triton -----------------------------------------------------------------------------------


@device
def gpu_f(x: Any, c: Any, half: constexpr) -> Any:
    x = at_least(x, -3.0)
    return x * at_most((x + 3.0) * c[0], 1.0)


@device
def gpu_df(x: Any, c: Any, half: constexpr) -> Any:
    # At −3 the sum is 0, which is the gradient there, and it is NaN for NaN.
    x = at_least(x, -3.0)
    inside = tl.where(x > -3.0, (x * 2.0 + 3.0) * c[0], x + 3.0)
    return tl.where(x > c[1], 1.0, inside)


@device
def gpu_d2f(x: Any, c: Any, half: constexpr) -> Any:
    x = at_least(x, -3.0)
    inside = tl.where(x > -3.0, c[0] + c[0], x + 3.0)
    return tl.where(x > c[1], 0.0, inside)


@device
def gpu_df_y(y: Any, right: Any, c: Any, table: constexpr, half: constexpr) -> Any:
    """±2·√((y − y_min)/k) on the quadratic part."""
    size = tl.sqrt(at_least((y + c[0]) + c[1], c[2]) * c[3])
    return tl.where(right, tl.where(y > c[4], 1.0, size), tl.where(y < 0, -size, y))


def gpu_numbers(k: float) -> tuple[float, ...]:
    """The slope of the weight, and the x at which the weight becomes 1."""
    return 1 / k, k - 3


def gpu_output_numbers(saved: torch.dtype, k: float) -> tuple[float, ...]:
    """The depth in two parts, the lower bound for y − y_min, 4/k, and y at the joint."""
    kinked = k < 1.5
    shift, least = (0.0, 0.0) if kinked else centring(9 / (4 * k), saved)
    depth = 9 / (4 * k) + shift
    return depth, depth - leading(depth, 24), least, 4 / k, -math.inf if kinked else k - 3


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
    twin=Twin(
        gpu_f, gpu_df, gpu_d2f, gpu_df_y, numbers=gpu_numbers, output_numbers=gpu_output_numbers
    ),
    published=(("hard Mish, k = 5", (5,)), ("hard Mish, k = 3", (3,)), ("hardswish", (6,))),
)
