"""SiLU, also called swish: x·σ(x)."""

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
from ._triton_math import (
    FAR_RIGHT,
    FLOOR,
    NEAR,
    NEARER,
    at_least,
    at_most,
    branch_table,
    divide,
    exp,
    from_output,
)

if TYPE_CHECKING:
    from triton.language import constexpr


def f(x: Tensor) -> Tensor:
    return F.silu(x.clamp_min(-FAR))


def df(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, FAR)
    s = torch.sigmoid(x)
    return s * (1 + x * torch.sigmoid(-x))


def d2f(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, FAR)
    s, c = torch.sigmoid(x), torch.sigmoid(-x)
    return s * c * (2 + x * (c - s))


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    return df_from_output("silu", f, df, y, right, saved)


# ---- in Triton -----------------------------------------------------------------------------------


@device
def gpu_parts(x: Any, half: constexpr) -> Any:
    """x clamped where its exponential is 0, and exp(min(x, NEAR))."""
    x = at_least(x, FLOOR)
    return x, exp(at_most(x, NEAR), half)


@device
def gpu_f(x: Any, c: Any, half: constexpr) -> Any:
    x, e = gpu_parts(x, half)
    return x * divide(e, e + 1.0)


@device
def gpu_rise(x: Any, e: Any) -> Any:
    """f' from x and its exponential."""
    r = divide(1.0, e + 1.0)
    sigma = e * r
    return sigma + sigma * (at_most(x, NEARER) * r)


@device
def gpu_bend(x: Any, e: Any) -> Any:
    """f'' from x and its exponential."""
    r = divide(1.0, e + 1.0)
    sigma = e * r
    return sigma * r * (2.0 + x * (r - sigma))


@device
def gpu_df(x: Any, c: Any, half: constexpr) -> Any:
    x, e = gpu_parts(x, half)
    return gpu_rise(x, e)


@device
def gpu_d2f(x: Any, c: Any, half: constexpr) -> Any:
    x = at_most(at_least(x, FLOOR), FAR_RIGHT)
    return gpu_bend(x, exp(x, half))


@device
def gpu_df_y(y: Any, right: Any, c: Any, table: constexpr, half: constexpr) -> Any:
    return from_output(y, right, table)


def to_onnx(write: OnnxWriter) -> Any:
    """Swish with beta = 1."""
    return write.swish(1.0)


def by_sigmoid(write: OnnxWriter) -> Any:
    """x·Sigmoid(x)."""
    return write("Mul", write.x, write("Sigmoid", write.x))


activation = Activation(
    name="silu",
    module_name="SiLU",
    formula="x·σ(x)",
    expression="x/(1 + exp(-x))",
    source="Elfwing, Uchibe & Doya 2018, Sigmoid-Weighted Linear Units (arXiv:1702.03118)",
    forms=(
        Form(STANDARD, to_onnx, float32=1.5e-7, float16=7.4e-4),
        Form("sigmoid", by_sigmoid, float32=1.5e-7, float16=7.4e-4),
    ),
    ulp=3,
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=MINIMA["silu"].turn,
    minimum=MINIMA["silu"],
    portable=F.silu,
    torch_function="silu",
    twin=Twin(gpu_f, gpu_df, gpu_d2f, gpu_df_y, table=partial(branch_table, "silu")),
)
