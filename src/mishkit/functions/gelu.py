"""GELU in its exact form: x·Φ(x), Φ the normal distribution function."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activation import Activation
from ._df_y_tables import TURNS
from ._inverse import df_from_output

FAR = 50.0
"""Φ(−FAR) and φ(FAR) are 0 in float64."""


def f(x: Tensor) -> Tensor:
    # F.gelu loses the left tail, overflows from 1.7e38 on and gives NaN at +inf.
    return x.clamp_min(-FAR) * _cdf(x)


def df(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, FAR)
    return _cdf(x) + x * _pdf(x)


def d2f(x: Tensor) -> Tensor:
    x = x.clamp(-FAR, FAR)
    return _pdf(x) * (2 - x * x)


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    return df_from_output("gelu", f, df, y, right, saved)


def _cdf(x: Tensor) -> Tensor:
    # erfc keeps the relative accuracy of the left tail, where 1 + erf cancels.
    return 0.5 * torch.erfc(x * -math.sqrt(0.5))


def _pdf(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))


activation = Activation(
    name="gelu",
    module_name="GELU",
    formula="x·Φ(x) = x/2·(1 + erf(x/√2))",
    expression="x*(1 + erf(x/sqrt(2)))/2",
    source="Hendrycks & Gimpel 2016, Gaussian Error Linear Units (arXiv:1606.08415)",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=TURNS["gelu"][0],
    portable=F.gelu,
    torch_function="gelu",
)
