"""Tanh form of GELU: x·σ(2u), u = √(2/π)·(x + 0.044715·x³)."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._twin import Twin, device
from ..activation import Activation, OnnxWriter
from ..forms import STANDARD, Form
from ._branch_fit import leading
from ._df_y_tables import MINIMA
from ._inverse import df_from_output
from ._triton_math import (
    FLOOR,
    LOG2E,
    at_least,
    at_most,
    branch_table,
    divide,
    exp2_sum,
    from_output,
)

if TYPE_CHECKING:
    import triton.language as tl
    from triton.language import constexpr

FAR = 30.0
"""σ(−2u(FAR)) is 0 in float64."""
SCALE = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715


def f(x: Tensor) -> Tensor:
    x = x.clamp_min(-FAR)
    c = x.clamp_max(FAR)
    # x·σ(2u) equals x/2·(1 + tanh u), but without its cancellation for negative x.
    return x * torch.sigmoid(_twice_u(c))


def df(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, FAR)
    w, dw = _twice_u(x), _twice_du(x)
    return torch.sigmoid(w) * (1 + x * dw * torch.sigmoid(-w))


def d2f(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, FAR)
    w, dw = _twice_u(x), _twice_du(x)
    d2w = 6 * SCALE * CUBIC * x
    s, c = torch.sigmoid(w), torch.sigmoid(-w)
    return s * c * (2 * dw + x * (d2w + dw * dw * (c - s)))


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    return df_from_output("gelu_tanh", f, df, y, right, saved)


def _twice_u(x: Tensor) -> Tensor:
    return SCALE * (x + CUBIC * x * x * x)


def _twice_du(x: Tensor) -> Tensor:
    return SCALE * (1 + 3 * CUBIC * x * x)


def _portable(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


# ---- in Triton -----------------------------------------------------------------------------------


# w in powers of two: w·log₂ e = x·(LINEAR + WEIGHT·x²). LINEAR is split into two parts, and WEIGHT
# into its float32 value and the rest.
LINEAR_HIGH = leading(SCALE * LOG2E, 12)
LINEAR_LOW = SCALE * LOG2E - LINEAR_HIGH
WEIGHT = SCALE * CUBIC * LOG2E
WEIGHT_REST = WEIGHT - leading(WEIGHT, 24)
GPU_NEAR, GPU_FAR = 7.5, 26.0
"""Above GPU_NEAR, σ(w) rounds to 1; below −GPU_FAR, exp(w) is 0."""


@device
def gpu_parts(x: Any, half: constexpr) -> Any:
    """x clamped on the far left, c = x clamped on the far right, exp(w(c)) and w'(c)."""
    x = at_least(x, -GPU_FAR)
    c = at_most(x, GPU_NEAR)
    square = c * c
    slope = square * (3 * SCALE * CUBIC) + SCALE
    bow = square * WEIGHT
    if half:
        return x, c, tl.exp2(c * (bow + (LINEAR_HIGH + LINEAR_LOW))), slope
    else:
        # w in two parts, because the exponential would magnify its rounding error up to 87 times.
        # The high part is short enough for the difference between the sum and it to be exact.
        total = bow + LINEAR_HIGH
        w = c * total
        rest = (bow - (total - LINEAR_HIGH)) + tl.fma(square, WEIGHT, -bow)
        rest = tl.fma(tl.fma(c, c, -square), WEIGHT, rest)
        rest += tl.fma(square, WEIGHT_REST, LINEAR_LOW)
        low = tl.fma(c, rest, tl.fma(c, total, -w))
        return x, c, exp2_sum(at_least(w, FLOOR * LOG2E), low), slope


@device
def gpu_f(x: Any, c: Any, half: constexpr) -> Any:
    x, _within, e, _dw = gpu_parts(x, half)
    return x * divide(e, e + 1.0)


@device
def gpu_df(x: Any, c: Any, half: constexpr) -> Any:
    _x, within, e, dw = gpu_parts(x, half)
    r = divide(1.0, e + 1.0)
    sigma = e * r
    return sigma + sigma * (within * dw * r)


@device
def gpu_d2f(x: Any, c: Any, half: constexpr) -> Any:
    _x, within, e, dw = gpu_parts(x, half)
    r = divide(1.0, e + 1.0)
    sigma = e * r
    bend = dw * dw * (r - sigma) + within * (6 * SCALE * CUBIC)
    return sigma * r * (within * bend + dw * 2.0)


@device
def gpu_df_y(y: Any, right: Any, c: Any, table: constexpr, half: constexpr) -> Any:
    return from_output(y, right, table)


def to_onnx(write: OnnxWriter) -> Any:
    """Gelu in its tanh form, or the formula if the opset doesn't have it."""
    if write.has("Gelu"):
        return write("Gelu", write.x, approximate="tanh")
    return by_tanh(write)


def by_tanh(write: OnnxWriter) -> Any:
    """x·(1 + Tanh(√(2/π)·(x + 0.044715·x³)))/2."""
    root = math.sqrt(2 / math.pi)
    slope = write("Add", write("Mul", write("Mul", write.x, write.x), 0.044715 * root), root)
    both = write("Add", write("Tanh", write("Mul", write.x, slope)), 1.0)
    return write("Mul", write.x, write("Mul", both, 0.5))


def by_sigmoid(write: OnnxWriter) -> Any:
    """x·Sigmoid(√(8/π)·(x + 0.044715·x³))."""
    root = math.sqrt(8 / math.pi)
    slope = write("Add", write("Mul", write("Mul", write.x, write.x), 0.044715 * root), root)
    return write("Mul", write.x, write("Sigmoid", write("Mul", write.x, slope)))


activation = Activation(
    name="gelu_tanh",
    module_name="GELUTanh",
    formula="x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))",
    expression="x/2*(1 + tanh(sqrt(2/pi)*(x + 44715*x**3/1000000)))",
    source="Hendrycks & Gimpel 2016, Gaussian Error Linear Units (arXiv:1606.08415)",
    forms=(
        Form(STANDARD, to_onnx, float32=1.6e-7, float16=9.2e-4),
        Form("tanh", by_tanh, float32=1.2e-7, float16=9.2e-4),
        Form("sigmoid", by_sigmoid, float32=1.5e-7, float16=7.7e-4),
    ),
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=MINIMA["gelu_tanh"].turn,
    minimum=MINIMA["gelu_tanh"],
    portable=_portable,
    twin=Twin(gpu_f, gpu_df, gpu_d2f, gpu_df_y, table=partial(branch_table, "gelu_tanh")),
)
