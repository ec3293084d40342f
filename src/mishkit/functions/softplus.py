"""Softplus, a baseline: ln(1 + exp(beta·x)) / beta."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activation import Activation, Parameter


def f(x: Tensor, beta: float, threshold: float) -> Tensor:
    return F.softplus(x, beta, threshold)


def df(x: Tensor, beta: float, threshold: float) -> Tensor:
    z = beta * x
    return torch.where(z > threshold, 1.0, torch.sigmoid(z))


def d2f(x: Tensor, beta: float, threshold: float) -> Tensor:
    z = beta * x
    return torch.where(z > threshold, 0.0, beta * torch.sigmoid(z) * torch.sigmoid(-z))


def df_y(y: Tensor, right: Tensor, saved: torch.dtype, beta: float, threshold: float) -> Tensor:
    z = beta * y
    # σ = 1 − exp(−softplus) loses its sign in the tail; expm1 keeps every digit of it.
    return torch.where(z > threshold, 1.0, -torch.expm1(-z))


activation = Activation(
    name="softplus",
    module_name="Softplus",
    formula="ln(1 + exp(beta·x)) / beta, and x itself where beta·x > threshold",
    expression="Piecewise((x, beta*x > threshold), (log(1 + exp(beta*x))/beta, True))",
    source="Dugas et al. 2001, Incorporating Second-Order Functional Knowledge",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=None,
    portable=F.softplus,
    parameters=(
        Parameter("beta", 1.0, "sharpness; not zero", nonzero=True),
        Parameter("threshold", 20.0, "beta·x above which x is returned as it is"),
    ),
    torch_function="softplus",
)
