"""APTx: (alpha + tanh(beta·x))·gamma·x."""

import math

import torch
from torch import Tensor

from ..activation import Activation, Parameter
from . import silu
from ._branch_fit import leading
from ._df_y_tables import TURNS
from ._inverse import df_from_output, sum_of_product
from ._limits import FAR

Value = float | Tensor

END = 25.0
"""|beta·x| from which the slope is its limit in every dtype."""
MOST_TURNS = 1000
"""Of how many values of alpha the turn is remembered."""
STEPS = 60
"""Safeguarded Newton steps: bisection alone would reach float64's resolution in about as many."""


# alpha + tanh(u) is (alpha + 1)·σ(2u) + (alpha − 1)·σ(−2u), which keeps every digit in both tails.
def f(x: Tensor, alpha: Value, beta: Value, gamma: Value) -> Tensor:
    weight = gamma * _sum(x, alpha, beta)
    # Where the weight is 0, infinity counts as a large number.
    return torch.where(weight == 0, _finite(x), x) * weight


def df(x: Tensor, alpha: Value, beta: Value, gamma: Value) -> Tensor:
    z = _z(x, beta)
    s, c = torch.sigmoid(z), torch.sigmoid(-z)
    return gamma * ((alpha + 1) * s + (alpha - 1) * c + 2 * z * s * c)


def d2f(x: Tensor, alpha: Value, beta: Value, gamma: Value) -> Tensor:
    z = _z(x, beta)
    s, c = torch.sigmoid(z), torch.sigmoid(-z)
    return 4 * gamma * beta * s * c * (2 + z * (c - s))


def dp(x: Tensor, alpha: Value, beta: Value, gamma: Value) -> tuple[Tensor, Tensor, Tensor]:
    z, total = _z(x, beta), _sum(x, alpha, beta)
    finite = _finite(x)
    # In an order in which nothing overflows on the way to 0.
    to_beta = (finite * torch.sigmoid(z)) * (finite * torch.sigmoid(-z)) * (4 * gamma)
    return gamma * x, to_beta, torch.where(total == 0, finite, x) * total


def df_y(
    y: Tensor, right: Tensor, saved: torch.dtype, alpha: float, beta: float, gamma: float
) -> Tensor:
    if beta < 0:  # the side of u = beta·x
        right = ~right
    if alpha == 1:  # y = gamma/beta·silu(2·beta·x)
        slope = df_from_output("silu", silu.f, silu.df, y, right, saved, beta / gamma)
        return 2 * gamma * slope
    return gamma * _slope(y, right, alpha, beta / gamma)


def turn(alpha: float, beta: float, gamma: float) -> float:
    if not (-1 < alpha <= 1 and beta * gamma > 0):
        raise ValueError(
            "mishkit.aptx: it has exactly one minimum where −1 < alpha ≤ 1 and beta·gamma > 0 "
            f"alone; they are {alpha:g}, {beta:g} and {gamma:g}"
        )
    return (TURNS["silu"][0] / 2 if alpha == 1 else _turn(alpha)) / beta


def _finite(x: Tensor) -> Tensor:
    largest = torch.finfo(x.dtype).max
    return x.clamp(-largest, largest)


def _z(x: Tensor, beta: Value) -> Tensor:
    return (2 * beta * _finite(x)).clamp(-FAR, FAR)


def _sum(x: Tensor, alpha: Value, beta: Value) -> Tensor:
    z = _z(x, beta)
    return (alpha + 1) * torch.sigmoid(z) + (alpha - 1) * torch.sigmoid(-z)


# ---- alpha < 1: of g(u) = u·(alpha + tanh u), u = beta·x, there is no table ----


_turns: dict[float, float] = {}


def _turn(alpha: float) -> float:
    """The u at which g has its minimum; found once for each alpha."""
    if torch.compiler.is_compiling():
        # Only whether there is a turn matters then, as compiled code keeps the input; a search
        # would be traced, and what is remembered would be watched.
        return math.nan
    if alpha not in _turns:
        if len(_turns) >= MOST_TURNS:
            _turns.clear()
        _turns[alpha] = _find_turn(alpha)
    return _turns[alpha]


def _find_turn(alpha: float) -> float:
    """By bisection: g' rises through 0 there."""
    low, high = -1.2, 1.2
    while low < (middle := (low + high) / 2) < high:
        t = math.tanh(middle)
        below = alpha + t + middle * (1 - t * t) < 0
        low, high = (middle, high) if below else (low, middle)
    return middle


def _slope(y: Tensor, right: Tensor, alpha: float, scale: float) -> Tensor:
    """g' at the u on the given side with g(u) = scale·y.

    Newton's method for v = u − turn, between brackets that close by bisection where it strays.
    g − g_min = v·d + turn·(d − s·v), with d = tanh u − tanh turn and s = tanh' turn, keeps its
    digits beside the minimum, where it is a parabola: its root is what is nearly linear in v.
    """
    bottom = _turn(alpha)
    t0 = math.tanh(bottom)
    s0 = 1 - t0 * t0
    depth = -bottom * (alpha + t0)

    def above(v: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.tanh(v)
        part = 1 / (1 + t0 * t)
        d = s0 * t * part
        rise = d - bottom * s0 + (bottom + v) * (s0 * (1 - t * t) * part * part)
        return v * d + bottom * (d - s0 * v), rise

    edge = torch.where(right, END - bottom, torch.full_like(y, -END - bottom))
    high = leading(depth, 24) if y.dtype == torch.float32 else depth
    limit = above(edge)[0]
    y = torch.minimum(y, limit / scale)
    target = sum_of_product(y, scale, high=high, low=depth - high).clamp_min(0)
    root = torch.minimum(target, limit).sqrt()
    low, far = torch.zeros_like(y), edge
    v = torch.minimum(root / math.sqrt(s0 * (1 - bottom * t0)), edge.abs()) * torch.sign(edge)
    for _ in range(STEPS):
        excess, rise = above(v)
        size = excess.clamp_min(0).sqrt()
        beyond = size > root
        low, far = torch.where(beyond, low, v), torch.where(beyond, v, far)
        newton = v - 2 * size * (size - root) / rise
        inside = (newton - low) * (newton - far) <= 0
        v = torch.where(inside, newton, 0.5 * (low + far))
    slope = above(v)[1]
    return torch.where(target > 0, slope, target)


def _portable(x: Tensor, alpha: Value, beta: Value, gamma: Value) -> Tensor:
    return (alpha + torch.tanh(beta * x)) * gamma * x


activation = Activation(
    name="aptx",
    module_name="APTx",
    formula="(alpha + tanh(beta·x))·gamma·x",
    expression="(alpha + tanh(beta*x))*gamma*x",
    source="Kumar 2022, APTx: Better Activation Function (arXiv:2209.06119)",
    f=f,
    df=df,
    d2f=d2f,
    dp=dp,
    df_y=df_y,
    turn=turn,
    portable=_portable,
    parameters=(
        Parameter("alpha", 1.0, "1 lets the left tail vanish"),
        Parameter("beta", 1.0, "sharpness"),
        Parameter("gamma", 0.5, "½ gives the right side slope 1"),
    ),
    published=(("APTx for Mish", (1, 1, 0.5)), ("APTx for SiLU", (1, 0.5, 0.5))),
    iterates=lambda alpha, beta, gamma: alpha != 1,
    keeps_state=True,
)
