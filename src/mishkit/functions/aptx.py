"""APTx: (alpha + tanh(beta·x))·gamma·x."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._twin import Twin, device
from ..activation import Activation, OnnxWriter, Parameter
from ..forms import STANDARD, Form
from . import silu
from ._branch_fit import Minimum, leading
from ._df_y_tables import MINIMA
from ._inverse import centring, df_from_output, sum_of_product
from ._limits import FAR, LARGEST, SMALLEST
from ._triton_math import (
    FLOOR,
    LN2_LOW,
    LOG2E,
    NEAR,
    NEARER,
    at_least,
    at_most,
    divide,
    exp_product,
    expm1,
    factor,
    from_scaled_output,
    scaled_numbers,
    scaled_table,
)

if TYPE_CHECKING:
    import triton.language as tl
    from triton.language import constexpr

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
    g = _Bottom(alpha)
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


class _Bottom:
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
    g = _Bottom(alpha)
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


# ---- in Triton -----------------------------------------------------------------------------------


LARGEST_X = 3.4028234663852886e38
LARGEST_SPLIT = LARGEST_X / 2.0**14
"""If |beta| is nearly 0: a number that `exp_product` can still take."""
STEPS_ON_GPU = 12
"""Safeguarded Newton steps for float32; they converge in 4 to 8."""

# The `c` that the functions below take. For alpha < 0 they are written in 1/e (see
# csrc/functions/aptx.h), with side = −1. 0 to 2 are the `factor` of side·2·beta; 3, 4 the bounds
# that x is clamped to for the exponential; 5, 6 those it is clamped to for its own use, since inf·0
# would be a NaN; 7, 8 the limits of the weight of x, gamma·(alpha ± side), and 9 their difference.
# For `gpu_dp` and where alpha is near 0, also 10 gamma, 11 alpha + side, 12 alpha − side, 13 alpha,
# 14 the side.


def gpu_numbers(alpha: float, beta: float, gamma: float) -> tuple[float, ...]:
    side = -1.0 if alpha < 0 else 1.0
    sharpness = 2 * side * beta
    top, base = gamma * (alpha + side), gamma * (alpha - side)
    low, high = -LARGEST_SPLIT, LARGEST_SPLIT
    if sharpness:
        a, b = FLOOR / sharpness, NEAR / sharpness
        low, high = max(low, min(a, b)), min(high, max(a, b))
    left, right = (top, base) if sharpness < 0 else (base, top)
    return (
        *(*factor(sharpness), low, high),
        *(-math.inf if left else -LARGEST_X, math.inf if right else LARGEST_X),
        *(top, base, 2 * side * gamma),
    )


def gpu_all_numbers(alpha: float, beta: float, gamma: float) -> tuple[float, ...]:
    side = -1.0 if alpha < 0 else 1.0
    rest = gamma, alpha + side, alpha - side, alpha, side
    return *gpu_numbers(alpha, beta, gamma), *rest


@device
def gpu_trained_numbers(p: Any) -> Any:
    """The same for blocks of parameters."""
    return gpu_block_numbers(p[0], p[1], p[2], tl.where(p[0] < 0, -1.0, 1.0))


@device
def gpu_block_numbers(alpha: Any, beta: Any, gamma: Any, side: Any) -> Any:
    sharpness = (beta + beta) * side
    to, start = alpha + side, alpha - side
    top, base = gamma * to, gamma * start
    a, b = divide(FLOOR, sharpness), divide(NEAR, sharpness)
    low = at_least(tl.minimum(a, b), -LARGEST_SPLIT)
    high = at_most(tl.maximum(a, b), LARGEST_SPLIT)
    falling = sharpness < 0
    least = tl.where(tl.where(falling, top, base) == 0, -LARGEST_X, float("-inf"))
    most = tl.where(tl.where(falling, base, top) == 0, LARGEST_X, float("inf"))
    return (
        sharpness,
        sharpness * LOG2E,
        LN2_LOW,
        low,
        high,
        least,
        most,
        top,
        base,
        (gamma + gamma) * side,
        gamma,
        to,
        start,
        alpha,
        side,
    )


@device
def gpu_parts(x: Any, c: Any, half: constexpr) -> Any:
    """x clamped for its own use and for the exponential, and e = exp(2·beta·x)."""
    within = at_most(at_least(x, c[3]), c[4])
    x = at_most(at_least(x, c[5]), c[6])
    return x, within, exp_product(within, c[0], c[1], c[2], half)


@device
def gpu_f(x: Any, c: Any, half: constexpr) -> Any:
    x, _within, e = gpu_parts(x, c, half)
    return x * divide(tl.fma(e, c[7], c[8]), e + 1.0)


@device
def gpu_df(x: Any, c: Any, half: constexpr) -> Any:
    _x, within, e = gpu_parts(x, c, half)
    r = divide(1.0, e + 1.0)
    return tl.fma(e, c[7], c[8]) * r + c[9] * (at_most(within * c[0], NEARER) * r) * (e * r)


@device
def gpu_d2f(x: Any, c: Any, half: constexpr) -> Any:
    _x, within, e = gpu_parts(x, c, half)
    r = divide(1.0, e + 1.0)
    sigma = e * r
    bend = sigma * r * (2.0 + within * c[0] * (r - sigma))
    return c[9] * c[0] * tl.where(sigma == 1.0, 0.0, bend)


@device
def gpu_dp(x: Any, c: Any, half: constexpr) -> Any:
    """gamma·x, 4·gamma·x²·σ(z)·σ(−z) and x·(alpha + tanh u)."""
    x, within, e = gpu_parts(x, c, half)
    r = divide(1.0, e + 1.0)
    sigma = e * r
    to_beta = (c[10] * 4.0) * (within * sigma) * (within * r)
    return c[10] * x, tl.where(sigma == 1.0, 0.0, to_beta), x * (tl.fma(e, c[11], c[12]) * r)


# If alpha is near 0, the weight of x near x = 0 is small compared with its limits; there it is
# computed from tanh itself. Other lanes are left unchanged.


@device
def gpu_sum(within: Any, e: Any, r: Any, c: Any, half: constexpr) -> Any:
    """alpha + tanh(beta·x) from e and r = 1/(e + 1)."""
    less_one = expm1(within * c[0], half)
    near = c[13] + c[14] * divide(less_one, less_one + 2.0)
    return tl.where(tl.abs(c[13]) < BALANCED, near, tl.fma(e, c[11], c[12]) * r)


@device
def gpu_balanced_f(x: Any, c: Any, half: constexpr) -> Any:
    x, within, e = gpu_parts(x, c, half)
    return x * (c[10] * gpu_sum(within, e, divide(1.0, e + 1.0), c, half))


@device
def gpu_balanced_df(x: Any, c: Any, half: constexpr) -> Any:
    _x, within, e = gpu_parts(x, c, half)
    r = divide(1.0, e + 1.0)
    rise = (c[14] + c[14]) * (at_most(within * c[0], NEARER) * r) * (e * r)
    return c[10] * (gpu_sum(within, e, r, c, half) + rise)


@device
def gpu_balanced_dp(x: Any, c: Any, half: constexpr) -> Any:
    to_alpha, to_beta, _to_gamma = gpu_dp(x, c, half)
    x, within, e = gpu_parts(x, c, half)
    return to_alpha, to_beta, x * gpu_sum(within, e, divide(1.0, e + 1.0), c, half)


@device
def gpu_df_y(y: Any, right: Any, c: Any, table: constexpr, half: constexpr) -> Any:
    if table is None:
        return gpu_iterated(y, right, c)
    else:
        return from_scaled_output(y, right == (c[7] == 0), c, table) * c[6]


@device
def gpu_at(v: Any, c: Any) -> Any:
    """g − g_min and g' at turn + v, without cancellation near the minimum; see `_slope`."""
    e = expm1(v + v, False)
    r = divide(1.0, c[3] * e + (e + 2.0))
    d = c[4] * e * r
    bend = c[4] * 4.0 * ((e + 1.0) * r) * r
    return v * d + c[2] * (d - c[4] * v), (c[2] + v) * bend + (d - c[2] * c[4])


@device
def gpu_iterated(y: Any, right: Any, c: Any) -> Any:
    """Like `_slope`, with as many steps as float32 needs."""
    right = right == (c[13] == 0)
    far = tl.where(right, c[11], c[12])
    limit = tl.where(right, c[9], c[10])
    y = at_most(y, divide(limit, c[0]))
    above = tl.fma(y, c[1], tl.fma(y, c[0], c[5])) + c[6]
    above = at_most(at_least(above, c[16]), limit)
    root = tl.sqrt(above)
    # Start between the parabola at the minimum and the straight line far out.
    line = (above - c[5]) * tl.where(right, c[7], c[8])
    v = at_least(root * c[14], tl.where(right, line - c[2], line + c[2]))
    v = at_most(v, tl.abs(far))
    v = tl.where(right, v, -v)
    low = tl.zeros_like(v)
    for _ in range(STEPS_ON_GPU):
        above, rise = gpu_at(v, c)
        size = tl.sqrt(at_least(above, 0.0))
        beyond = size > root
        low, far = tl.where(beyond, low, v), tl.where(beyond, v, far)
        newton = v - divide((size + size) * (size - root), rise)
        inside = (newton - low) * (newton - far) <= 0
        v = tl.where(inside, newton, (low + far) * 0.5)
    _above, rise = gpu_at(v, c)
    return tl.where(root > 0, rise, root) * c[15]


def gpu_output_numbers(
    saved: torch.dtype, alpha: float, beta: float, gamma: float
) -> tuple[float, ...]:
    scale, mirrored = beta / gamma, float(beta < 0)
    if alpha == 1:
        return *scaled_numbers("silu", scale, saved), 2 * gamma, mirrored
    g = _Bottom(alpha)
    bottom = g.turn
    shift, least = (scale * value for value in centring(g.depth / scale, saved))
    depth = g.depth + shift
    far = END - bottom, -END - bottom
    limits = ((bottom + v) * (alpha + math.tanh(bottom + v)) + g.depth for v in far)
    return (
        *(scale, scale - leading(scale, 24), bottom, g.t, g.s, depth, depth - leading(depth, 24)),
        *(1 / (1 + alpha), 1 / (1 - alpha), *limits, *far, mirrored),
        *(1 / g.bend, gamma, least),
    )


def gpu_table(saved: torch.dtype, alpha: float, beta: float, gamma: float) -> Any:
    return scaled_table("silu", saved) if alpha == 1 else None


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
    twin=Twin(
        gpu_f,
        gpu_df,
        gpu_d2f,
        gpu_df_y,
        numbers=gpu_numbers,
        output_numbers=gpu_output_numbers,
        table=gpu_table,
        trained_numbers=gpu_trained_numbers,
        dp=gpu_dp,
        varies=lambda alpha, beta, gamma: abs(alpha) < BALANCED,
        variant=Twin(
            gpu_balanced_f,
            gpu_balanced_df,
            gpu_d2f,
            gpu_df_y,
            numbers=gpu_all_numbers,
            output_numbers=gpu_output_numbers,
            table=gpu_table,
            trained_numbers=gpu_trained_numbers,
            dp=gpu_balanced_dp,
        ),
    ),
)
