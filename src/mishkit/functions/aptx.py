"""APTx: (alpha + tanh(beta·x))·gamma·x."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..activation import Activation, OnnxWriter, Parameter
from ..forms import STANDARD, Form
from . import silu
from ._branch_fit import Minimum, leading
from ._df_y_tables import MINIMA
from ._inverse import centring, df_from_output, sum_of_product
from ._limits import FAR, LARGEST, SMALLEST

Value = float | Tensor

END = 25.0
"""The |beta·x| beyond which the slope equals its limit in every dtype."""
BALANCED = 0.25
"""If |alpha| is below this, alpha + tanh(u) is computed with tanh itself."""
MOST_TURNS = 1000
"""How many values of alpha the turn is cached for."""
STEPS = 60
"""Safeguarded Newton steps: bisection alone would need about as many for float64's resolution."""


# alpha + tanh(u) is (alpha + 1)·σ(2u) + (alpha − 1)·σ(−2u). This keeps every digit in both tails,
# but near u = 0 it loses digits if alpha is near 0.
def f(x: Tensor, alpha: Value, beta: Value, gamma: Value) -> Tensor:
    weight = gamma * _sum(x, alpha, beta)
    # Where the weight is 0, infinity is treated as a large number.
    return torch.where(weight == 0, _finite(x), x) * weight


def df(x: Tensor, alpha: Value, beta: Value, gamma: Value) -> Tensor:
    z = _z(x, beta)
    s, c = torch.sigmoid(z), torch.sigmoid(-z)
    return gamma * (_sum(x, alpha, beta) + 2 * z * s * c)


def d2f(x: Tensor, alpha: Value, beta: Value, gamma: Value) -> Tensor:
    z = _z(x, beta)
    s, c = torch.sigmoid(z), torch.sigmoid(-z)
    return 4 * gamma * beta * s * c * (2 + z * (c - s))


def dp(x: Tensor, alpha: Value, beta: Value, gamma: Value) -> tuple[Tensor, Tensor, Tensor]:
    z, total = _z(x, beta), _sum(x, alpha, beta)
    finite = _finite(x)
    # Multiplied in an order in which nothing overflows on the way to 0.
    to_beta = (finite * torch.sigmoid(z)) * (finite * torch.sigmoid(-z)) * (4 * gamma)
    return gamma * x, to_beta, torch.where(total == 0, finite, x) * total


def df_y(
    y: Tensor, right: Tensor, saved: torch.dtype, alpha: float, beta: float, gamma: float
) -> Tensor:
    if beta < 0:  # `right` is now the side of u = beta·x
        right = ~right
    if alpha == 1:  # y = gamma/beta·silu(2·beta·x)
        slope = df_from_output("silu", silu.f, silu.df, y, right, saved, beta / gamma)
        return 2 * gamma * slope
    return gamma * _slope(y, right, saved, alpha, beta / gamma)


def turn(alpha: float, beta: float, gamma: float) -> float:
    if not (-1 < alpha <= 1 and beta * gamma > 0):
        raise ValueError(
            "mishkit.aptx: it has exactly one minimum where −1 < alpha ≤ 1 and beta·gamma > 0 "
            f"alone; they are {alpha:g}, {beta:g} and {gamma:g}"
        )
    return (MINIMA["silu"].turn / 2 if alpha == 1 else _turn(alpha)) / beta


def minimum(alpha: float, beta: float, gamma: float) -> Minimum:
    scale, rise = gamma / beta, gamma * beta
    if alpha == 1:
        silu = MINIMA["silu"]
        return Minimum(silu.turn / (2 * beta), scale * silu.y, 2 * math.sqrt(rise) * silu.bend)
    g = Bottom(alpha)
    return Minimum(g.turn / beta, -scale * g.depth, math.sqrt(rise) * g.bend)


def _finite(x: Tensor) -> Tensor:
    largest = torch.finfo(x.dtype).max
    return x.clamp(-largest, largest)


def _z(x: Tensor, beta: Value) -> Tensor:
    return (2 * beta * _finite(x)).clamp(-FAR, FAR)


def _sum(x: Tensor, alpha: Value, beta: Value) -> Tensor:
    z = _z(x, beta)
    if not isinstance(alpha, Tensor):
        return alpha + torch.tanh(z / 2) if abs(alpha) < BALANCED else _in_tails(z, alpha)
    return torch.where(alpha.abs() < BALANCED, alpha + torch.tanh(z / 2), _in_tails(z, alpha))


def _in_tails(z: Tensor, alpha: Value) -> Tensor:
    return (alpha + 1) * torch.sigmoid(z) + (alpha - 1) * torch.sigmoid(-z)


# ---- alpha < 1: there is no table for g(u) = u·(alpha + tanh u), u = beta·x ----


_turns: dict[float, float] = {}


def _turn(alpha: float) -> float:
    """The u at which g has its minimum; cached for each alpha."""
    if torch.compiler.is_compiling():
        # Compiled code keeps the input, so it matters only whether there is a turn. The search
        # would be traced, and the cache would be guarded.
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


class Bottom:
    """The minimum of g for one alpha: the turn, tanh and its slope there, the depth, √(g''/2)."""

    def __init__(self, alpha: float) -> None:
        self.turn = _turn(alpha)
        self.t = math.tanh(self.turn)
        self.s = 1 - self.t * self.t
        self.depth = -self.turn * (alpha + self.t)
        self.bend = math.sqrt(self.s * (1 - self.turn * self.t))


def _slope(y: Tensor, right: Tensor, saved: torch.dtype, alpha: float, scale: float) -> Tensor:
    """g' at the u on the given side with g(u) = scale·y.

    Newton's method for v = u − turn, between brackets that close by bisection where a step leaves
    them. g − g_min = v·d + turn·(d − s·v), with d = tanh u − tanh turn and s = tanh' turn, keeps
    its digits near the minimum, where it is a parabola. The iteration uses the square root of g −
    g_min, which is nearly linear in v.
    """
    g = Bottom(alpha)
    bottom, t0, s0 = g.turn, g.t, g.s
    shift, least = (scale * value for value in centring(g.depth / scale, saved))
    depth = g.depth + shift

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
    target = sum_of_product(y, scale, high=high, low=depth - high).clamp_min(least)
    root = torch.minimum(target, limit).sqrt()
    low, far = torch.zeros_like(y), edge
    v = torch.minimum(root / g.bend, edge.abs()) * torch.sign(edge)
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


def to_onnx(write: OnnxWriter, alpha: float, beta: float, gamma: float) -> Any:
    """x·(Tanh(beta·x) + alpha)·gamma, or Swish where that is the same function."""
    if alpha == 1 and gamma == 0.5:
        return write.swish(2 * beta)
    weight = write("Add", write("Tanh", write.scaled(write.x, beta)), alpha)
    return write("Mul", write.x, write.scaled(weight, gamma))


def by_sigmoid(write: OnnxWriter, alpha: float, beta: float, gamma: float) -> Any:
    """x·(2·gamma·Sigmoid(2·beta·x) + gamma·(alpha − 1))."""
    steep = write("Sigmoid", write.scaled(write.x, 2 * beta))
    weight = write.scaled(steep, 2 * gamma)
    is_centred = isinstance(alpha, float) and alpha == 1
    return write(
        "Mul", write.x, weight if is_centred else write("Add", weight, gamma * (alpha - 1))
    )


activation = Activation(
    name="aptx",
    module_name="APTx",
    formula="(alpha + tanh(beta·x))·gamma·x",
    expression="(alpha + tanh(beta*x))*gamma*x",
    source="Kumar 2022, APTx: Better Activation Function (arXiv:2209.06119)",
    forms=(
        Form(STANDARD, to_onnx, float32=1.5e-7, float16=7.4e-4),
        Form("sigmoid", by_sigmoid, float32=1.5e-7, float16=7.4e-4),
    ),
    made_of="one exponential",
    f=f,
    df=df,
    d2f=d2f,
    dp=dp,
    df_y=df_y,
    turn=turn,
    minimum=minimum,
    portable=_portable,
    parameters=(
        Parameter("alpha", 1.0, "1 lets the left tail vanish", largest=LARGEST),
        Parameter("beta", 1.0, "sharpness", smallest=SMALLEST, largest=LARGEST),
        Parameter(
            "gamma", 0.5, "½ gives the right side slope 1", smallest=SMALLEST, largest=LARGEST
        ),
    ),
    published=(("APTx for Mish", (1, 1, 0.5)), ("APTx for SiLU", (1, 0.5, 0.5))),
    iterates=lambda alpha, beta, gamma: alpha != 1,
)
