"""Mish: x·tanh(ln(1 + eˣ)) = x·n/(n + 2) with e = eˣ, n = e(e + 2)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._twin import Twin, device
from ..activation import Activation, OnnxWriter
from ..forms import STANDARD, Form
from ._df_y_tables import MINIMA
from ._inverse import df_from_output
from ._limits import FAR
from ._triton_math import FLOOR, at_least, at_most, branch_table, divide, exp, from_output
from ._triton_math import NEAR as GPU_NEAR

if TYPE_CHECKING:
    from triton.language import constexpr

NEAR = 20.0
"""Above this, n/(n + 2) rounds to 1 in float64; clamping here keeps n finite in float32."""


def f(x: Tensor) -> Tensor:
    x = x.clamp_min(-FAR)
    e = torch.exp(x.clamp_max(NEAR))
    n = e * (e + 2)
    return x * (n / (n + 2))


def df(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, NEAR)
    e = torch.exp(x)
    n = e * (e + 2)
    r = 1 / (n + 2)
    return r * (n + 4 * x * (e * e + e) * r)


def d2f(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, NEAR)
    e = torch.exp(x)
    n = e * (e + 2)
    r = 1 / (n + 2)
    s, t = e / (1 + e), n * r
    return 4 * e * (1 + e) * r * r * (2 + x * (1 - s * (1 + 2 * t)))


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    return df_from_output("mish", f, df, y, right, saved)


# ---- in Triton -----------------------------------------------------------------------------------


@device
def gpu_parts(x: Any, half: constexpr) -> Any:
    """x clamped where its exponential is 0, then e and n."""
    x = at_least(x, FLOOR)
    e = exp(at_most(x, GPU_NEAR), half)
    return x, e, e * e + (e + e)


@device
def gpu_f(x: Any, c: Any, half: constexpr) -> Any:
    x, _e, n = gpu_parts(x, half)
    return x * divide(n, n + 2.0)


@device
def gpu_df(x: Any, c: Any, half: constexpr) -> Any:
    x, e, n = gpu_parts(x, half)
    r = divide(1.0, n + 2.0)
    growth = at_most(x, GPU_NEAR) * (e * e + e)
    return (n + (growth * r) * 4.0) * r


@device
def gpu_d2f(x: Any, c: Any, half: constexpr) -> Any:
    x, e, n = gpu_parts(x, half)
    r = divide(1.0, n + 2.0)
    s = divide(e, e + 1.0)
    bend = 2.0 + at_most(x, GPU_NEAR) * (1.0 - s * (n * r * 2.0 + 1.0))
    return (e * e + e) * 4.0 * r * r * bend


@device
def gpu_df_y(y: Any, right: Any, c: Any, table: constexpr, half: constexpr) -> Any:
    return from_output(y, right, table)


def to_onnx(write: OnnxWriter) -> Any:
    """Mish, or x·Tanh(Softplus(x)) if the opset doesn't have it."""
    if write.has("Mish"):
        return write("Mish", write.x)
    return write("Mul", write.x, write("Tanh", write("Softplus", write.x)))


def by_sigmoid(write: OnnxWriter) -> Any:
    """x·u/(2 − u) with u = s·(2 − s) and s = Sigmoid(x): nothing overflows, in any dtype."""
    s = write("Sigmoid", write.x)
    u = write("Mul", s, write("Sub", 2.0, s))
    return write("Div", write("Mul", write.x, u), write("Sub", 2.0, u))


activation = Activation(
    name="mish",
    module_name="Mish",
    formula="x·tanh(ln(1 + eˣ))",
    expression="x*tanh(log(1 + exp(x)))",
    source="Misra 2019, Mish: A Self Regularized Non-Monotonic Activation (arXiv:1908.08681)",
    forms=(
        Form(STANDARD, to_onnx, float32=1.1e-7, float16=7.6e-4),
        Form("sigmoid", by_sigmoid, float32=3.4e-7, float16=2.5e-3),
    ),
    ulp=3,
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=MINIMA["mish"].turn,
    minimum=MINIMA["mish"],
    portable=F.mish,
    torch_function="mish",
    twin=Twin(gpu_f, gpu_df, gpu_d2f, gpu_df_y, table=partial(branch_table, "mish")),
)
