"""Linear swish: 2x·σ(1.25x) left of 0, x right of it."""

import torch
from torch import Tensor

from ..activation import Activation
from . import silu
from ._df_y_tables import TURNS
from ._inverse import df_from_output
from ._limits import FAR

BETA = 1.25


# With z = BETA·x, the left part is 2·silu(z)/BETA.
def f(x: Tensor) -> Tensor:
    left = x.clamp(-FAR, 0)
    return torch.where(x > 0, x, 2 * left * torch.sigmoid(BETA * left))


def df(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, 2 * silu.df(BETA * x))


def d2f(x: Tensor) -> Tensor:
    return torch.where(x > 0, 0.0, 2 * BETA * silu.d2f(BETA * x))


def df_y(y: Tensor, right: Tensor, saved: torch.dtype) -> Tensor:
    left = df_from_output("silu", silu.f, silu.df, y.clamp_max(0), right, saved, BETA / 2)
    return torch.where(right & (y >= 0), 1.0, 2 * left)


def _portable(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 2 * x * torch.sigmoid(BETA * x))


activation = Activation(
    name="linear_swish",
    module_name="LinearSwish",
    formula="2x·σ(1.25x) where x ≤ 0, x where x > 0",
    expression="Piecewise((2*x/(1 + exp(-5*x/4)), x <= 0), (x, True))",
    source="a swish (arXiv:1710.05941) of slope 1 at 0, continued by a straight line",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=TURNS["silu"][0] / BETA,
    portable=_portable,
)
