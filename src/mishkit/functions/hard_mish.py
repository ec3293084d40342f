"""Hard Mish: x·min(k, max(0, x + 3))/k."""

import torch
from torch import Tensor

from ..activation import Activation, Parameter
from ._branch_fit import leading
from ._inverse import centring


def f(x: Tensor, k: float) -> Tensor:
    x = x.clamp_min(-3)
    return x * ((x + 3) / k).clamp_max(1)


def df(x: Tensor, k: float) -> Tensor:
    inside = torch.where(x <= -3, 0.0, (2 * x + 3) / k)
    return torch.where(x > k - 3, 1.0, inside)


def d2f(x: Tensor, k: float) -> Tensor:
    return torch.where((x <= -3) | (x > k - 3), 0.0, torch.full_like(x, 2 / k))


def df_y(y: Tensor, right: Tensor, saved: torch.dtype, k: float) -> Tensor:
    # y = ((x + 3/2)² − 9/4)/k on the quadratic part, so |f'| is 2·√((y − y_min)/k). Below k = 3/2
    # the joint is the minimum, and there is no quadratic part right of it.
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


def _portable(x: Tensor, k: float) -> Tensor:
    return x * (x + 3).clamp(0, k) / k


activation = Activation(
    name="hard_mish",
    module_name="HardMish",
    formula="x·min(k, max(0, x + 3))/k",
    expression="x*Min(k, Max(0, x + 3))/k",
    source="hard forms of Mish, k = 5 and k = 3 as published; k = 6 is hardswish",
    f=f,
    df=df,
    d2f=d2f,
    df_y=df_y,
    turn=turn,
    portable=_portable,
    parameters=(
        Parameter(
            "k",
            5.0,
            "width of the quadratic part, which ends at x = k − 3; positive",
            positive=True,
        ),
    ),
    published=(("hard Mish, k = 5", (5,)), ("hard Mish, k = 3", (3,)), ("hardswish", (6,))),
)
