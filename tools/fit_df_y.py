"""Fit f' as a function of the rounded output y and of one bit, the side of the minimum.

    python tools/fit_df_y.py            write the tables for Python and for C++
    python tools/fit_df_y.py --check    fail if those files are not what would be written
    python tools/fit_df_y.py --report   print what each table achieves, at nearby degrees too

Beside its minimum f is a parabola, so in the signed root t = ±√(y − y_min), negative on the left,
f' is a smooth function that knows nothing of the two branches. It stops being smooth where the
left branch dies out, y → 0⁻; there u = −√(−y) is the better variable. Either way it takes one
square root, and four polynomials cover everything, chosen by y so that a processor need not wait
for the root:

    tail  = left and y > y_tail
    root  = √(|y| if tail else max(least, (min(y, y_max) + y_min_hi) + y_min_lo))
    t     = −root if left else root
    piece = 0 if tail else 1 if left else 1 + (y > breaks[0]) + (y > breaks[1])
    f'    = Horner(coefficients[·][piece], t − centers[piece])

The tail is centred on 0 with the constant 0 and the last piece on its end with the constant 1, so
the gradients of the limits are exact.

Beside the minimum one y stands for a whole range of gradients, and the best answer is their
middle: `least` and a shift of y_min lead there. Elsewhere float32 is fine enough for a minimax fit.
A 16-bit y is the output of many inputs everywhere: the fit is least squares over all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import NamedTuple

import _same_blas  # noqa: F401  (before numpy)
import mpmath as mp
import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src" / "mishkit" / "functions"))
from _branch_fit import BranchFit, centring  # noqa: E402  (a plain file: importing mishkit needs the tables)

PYTHON_TARGET = ROOT / "src" / "mishkit" / "functions" / "_df_y_tables.py"
CPP_TARGET = ROOT / "csrc" / "functions" / "df_y_tables.h"

Array = np.ndarray
mp.mp.dps = 40

DEGREES = {
    "mish": {"float32": 8, "bfloat16": 4, "float16": 4},
    "silu": {"float32": 9, "bfloat16": 3, "float16": 4},
    "gelu": {"float32": 10, "bfloat16": 4, "float16": 4},
    "gelu_tanh": {"float32": 10, "bfloat16": 4, "float16": 4},
}
"""The least with a float32 error of at most 1.7e-6 (half as much for silu's, which serves at twice
its height too), or a 16-bit error of at most 1.05 times that of the exact inverse in maximum and in
root mean square, under N(0, 1) and N(0, 4) alike so that no table is tuned to one scale of inputs.
`--report` prints what decided."""


# ---- the functions ------------------------------------------------------------------------------


def erfc(x: Array) -> Array:
    return torch.special.erfc(torch.from_numpy(np.asarray(x, float))).numpy()


def sigmoid(x: Array) -> Array:
    return np.exp(-np.logaddexp(0, -x))


def mish(x: Array) -> Array:
    e = np.exp(np.minimum(x, 40))
    n = e * (e + 2)
    return x * (n / (n + 2))


def mish_slope(x: Array) -> Array:
    x = np.minimum(x, 40)
    e = np.exp(x)
    n = e * (e + 2)
    return (n + 4 * x * e * (e + 1) / (n + 2)) / (n + 2)


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def silu_slope(x: Array) -> Array:
    x = np.clip(x, -745, 745)
    return sigmoid(x) * (1 + x * sigmoid(-x))


def gelu(x: Array) -> Array:
    return x * erfc(-x * math.sqrt(0.5)) / 2


def gelu_slope(x: Array) -> Array:
    x = np.clip(x, -40, 40)
    return erfc(-x * math.sqrt(0.5)) / 2 + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


TANH_SCALE, TANH_CUBIC = math.sqrt(8 / math.pi), 0.044715


def gelu_tanh(x: Array) -> Array:
    c = np.clip(x, -40, 40)
    return x * sigmoid(TANH_SCALE * (c + TANH_CUBIC * c**3))


def gelu_tanh_slope(x: Array) -> Array:
    x = np.clip(x, -40, 40)
    z = TANH_SCALE * (x + TANH_CUBIC * x**3)
    return sigmoid(z) * (1 + x * sigmoid(-z) * TANH_SCALE * (1 + 3 * TANH_CUBIC * x * x))


@dataclass(frozen=True)
class Curve:
    """A function that falls to one minimum and rises after it, and its slope as one of y."""

    name: str
    cpp_name: str
    f: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    exact: Callable[[mp.mpf], mp.mpf]

    @cached_property
    def turn_exact(self) -> mp.mpf:
        return mp.findroot(lambda x: mp.diff(self.exact, x), (-1.5, -0.5), solver="anderson")

    @cached_property
    def y_min_exact(self) -> mp.mpf:
        return self.exact(self.turn_exact)

    @cached_property
    def bend(self) -> float:
        """√(f''/2) at the turn."""
        return float(mp.sqrt(mp.diff(self.exact, self.turn_exact, 2) / 2))

    @property
    def turn(self) -> float:
        return float(self.turn_exact)

    @property
    def y_min(self) -> float:
        return float(self.y_min_exact)

    def invert(self, y: Array, left: Array | bool) -> Array:
        """The x on the given side with f(x) = y, by bisection."""
        y, left = np.broadcast_arrays(np.asarray(y, float), left)
        low = np.where(left, -760.0, self.turn)
        high = np.where(left, self.turn, np.maximum(y, 0) + 2)
        for _ in range(64):
            middle = (low + high) / 2
            rise = (self.f(middle) < y) != left
            low, high = np.where(rise, middle, low), np.where(rise, high, middle)
        return (low + high) / 2

    def slope_of_output(self, y: Array, left: Array | bool) -> Array:
        """f' from an exact y: 0 at the minimum and below, 0 where the left branch ends."""
        inside = (y > self.y_min) & ~(left & (y >= 0))
        return np.where(inside, self.slope(self.invert(y, left)), 0.0)

    def slope_of_root(self, t: Array) -> Array:
        return self.slope_of_output(self.y_min + t * t, t < 0)

    def slope_of_tail(self, u: Array) -> Array:
        return self.slope_of_output(-u * u, True)


CURVES = {
    curve.name: curve
    for curve in (
        Curve("mish", "Mish", mish, mish_slope, lambda x: x * mp.tanh(mp.log1p(mp.exp(x)))),
        Curve("silu", "SiLU", silu, silu_slope, lambda x: x / (1 + mp.exp(-x))),
        Curve("gelu", "GELU", gelu, gelu_slope, lambda x: x * mp.ncdf(x)),
        Curve(
            "gelu_tanh",
            "GELUTanh",
            gelu_tanh,
            gelu_tanh_slope,
            lambda x: x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3))),
        ),
    )
}


# ---- the formula of a table, in float32 ---------------------------------------------------------


def evaluate(fit: BranchFit, y: Array, left: Array) -> Array:
    """The formula above in float32, each step of Horner rounded once."""
    f32 = np.float32
    y = y.astype(f32)
    tail = left & (y > f32(fit.y_tail))
    above = (np.minimum(y, f32(fit.y_max)) + f32(fit.y_min_hi)) + f32(fit.y_min_lo)
    root = np.sqrt(np.where(tail, np.abs(y), np.maximum(f32(fit.least), above)))
    t = np.where(left, -root, root)
    rising = (y > f32(fit.breaks[0])).astype(int) + (y > f32(fit.breaks[1]))
    piece = np.where(tail, 0, np.where(left, 1, 1 + rising))
    w = t - f32(fit.centers)[piece]
    rows = [f32(row)[piece] for row in fit.coefficients]
    p = rows[-1]
    for row in reversed(rows[:-1]):
        p = (p.astype(float) * w + row).astype(f32)
    return p.astype(float)


def to_float32(x: float | mp.mpf) -> float:
    return float(np.float32(float(x)))


def on_grid(x: float, steps: int = 256) -> float:
    """Thresholds are nobody's optimum to the last digit: keep them short and exact."""
    return round(float(x) * steps) / steps


class Pieces(NamedTuple):
    """The four polynomials, by where they end in t: tail, valley, rise and shoulder."""

    tail: float
    first: float
    second: float
    end: float

    def y_tail(self, curve: Curve) -> float:
        return curve.y_min + self.tail**2

    def y_breaks(self, curve: Curve) -> tuple[float, float]:
        return curve.y_min + self.first**2, curve.y_min + self.second**2

    def y_max(self, curve: Curve) -> float:
        return curve.y_min + self.end**2


def assemble(
    curve: Curve,
    pieces: Pieces,
    degree: int,
    fit_piece: Callable[[int, float, float, float, float | None], Sequence[float]],
    shift: float = 0.0,
    least: float = 0.0,
    split: bool = False,
) -> BranchFit:
    """Lay out a table; fit_piece(piece, begin, end, center, constant) gives the coefficients.

    `constant` is the coefficient of degree 0 where that is given in advance.
    """
    offset = mp.mpf(shift) - curve.y_min_exact
    hi = to_float32(offset)
    lo = to_float32(offset - hi) if split else 0.0
    y_max = on_grid(pieces.y_max(curve))
    y_tail = on_grid(pieces.y_tail(curve), 4096)
    y_breaks = pieces.y_breaks(curve)
    breaks = (on_grid(y_breaks[0], 4096), on_grid(y_breaks[1], 4096))
    # Exactly the number that the formula computes for y ≥ y_max.
    end = float(np.sqrt((np.float32(y_max) + np.float32(hi)) + np.float32(lo)))
    begin = -math.sqrt(y_tail - curve.y_min)
    first, second = (math.sqrt(max(0.0, y - curve.y_min)) for y in breaks)
    centers = (0.0, on_grid((begin + first) / 2), on_grid((first + second) / 2), end)
    columns = [
        fit_piece(0, -math.sqrt(-y_tail), 0.0, centers[0], 0.0),
        fit_piece(1, begin, first, centers[1], None),
        fit_piece(2, first, second, centers[2], None),
        fit_piece(3, second, end, centers[3], 1.0),
    ]
    assert all(len(column) == degree + 1 for column in columns)
    rows = tuple(tuple(to_float32(c) for c in row) for row in zip(*columns, strict=True))
    return BranchFit(hi, lo, least, y_tail, y_max, breaks, centers, rows)


# ---- float32: minimax ---------------------------------------------------------------------------


def chebyshev_nodes(begin: float, end: float, count: int) -> Array:
    return (begin + end) / 2 - (end - begin) / 2 * np.cos(np.linspace(0, math.pi, count))


def minimax(w: Array, g: Array, powers: Sequence[int]) -> tuple[Array, float]:
    """Remez' exchange: the c that make max |g − Σ c·w^power| least over the points, and that max.

    The points are Chebyshev nodes, so evenly spread indices are a good first reference.
    """
    scale = np.abs(w).max()
    basis = (w / scale)[:, None] ** np.array(powers)
    count = len(powers) + 1
    reference = np.linspace(0, len(w) - 1, count + 2)[1:-1].round().astype(int).tolist()
    signs = (-1.0) ** np.arange(count)
    for _ in range(200):
        solved = np.linalg.solve(np.column_stack([basis[reference], signs]), g[reference])
        error = g - basis @ solved[:-1]
        peak = int(np.abs(error).argmax())
        worst = abs(error[peak])
        if worst <= abs(solved[-1]) * (1 + 1e-6) + 1e-15:
            break
        # The peak takes the place of the neighbour with its sign, so that signs go on alternating.
        place = bisect_left(reference, peak)
        if place < count and error[reference[place]] * error[peak] > 0:
            reference[place] = peak
        elif place > 0 and error[reference[place - 1]] * error[peak] > 0:
            reference[place - 1] = peak
        elif place == 0:
            reference = [peak, *reference[:-1]]
        else:
            reference = [*reference[1:], peak]
    return solved[:-1] / scale ** np.array(powers, float), float(worst)


def samples(curve: Curve, piece: int, begin: float, end: float, count: int) -> tuple[Array, Array]:
    points = chebyshev_nodes(begin, end, count)
    return points, (curve.slope_of_tail if piece == 0 else curve.slope_of_root)(points)


def minimax_piece(
    curve: Curve,
    degree: int,
    piece: int,
    begin: float,
    end: float,
    center: float,
    constant: float | None,
) -> list[float]:
    """Round to float32 from the highest degree down, fitting the lower ones again each time."""
    points, g = samples(curve, piece, begin, end, 24 * (degree + 1))
    w = points - center
    if constant is not None:  # its own point is met exactly and takes no part
        w, g = w[w != 0], (g - constant)[w != 0]
    lowest = 0 if constant is None else 1
    coefficients = [constant or 0.0] + [0.0] * degree
    for k in range(degree, lowest - 1, -1):
        free, _ = minimax(w, g, range(lowest, k + 1))
        coefficients[k] = to_float32(free[-1])
        g = g - coefficients[k] * w**k
    return coefficients


def balanced_pieces(curve: Curve, degree: int) -> Pieces:
    """The breaks at which all four polynomials, and the limit beyond them, err equally."""

    def error(piece: int, begin: float, end: float) -> float:
        points, g = samples(curve, piece, begin, end, 6 * (degree + 1))
        if piece in (0, 3):
            w, g = (points, g) if piece == 0 else (points - end, g - 1)
            return minimax(w[:-1], g[:-1], range(1, degree + 1))[1]
        return minimax(points - (begin + end) / 2, g, range(degree + 1))[1]

    def furthest(low: float, high: float, too_far: Callable[[float], bool]) -> float:
        while abs(high - low) > 1e-3:
            middle = (low + high) / 2
            low, high = (low, middle) if too_far(middle) else (middle, high)
        return low

    def reach(bound: float) -> Pieces | None:
        u = furthest(-0.1, -math.sqrt(-curve.y_min), lambda u: error(0, u, 0.0) > bound)
        tail = -math.sqrt(-u * u - curve.y_min)
        # Left of the minimum there are the first two pieces only.
        first = furthest(max(tail + 0.1, 0.0), 3.0, lambda t: error(1, tail, t) > bound)
        if error(1, tail, first) > bound:
            return None
        second = furthest(first + 0.1, 5.0, lambda t: error(2, first, t) > bound)
        # Not monotone in the end, which must be far enough out for the limit to be met there.
        shoulder, end = min((error(3, second, t), t) for t in second + np.arange(0.5, 2.5, 0.05))
        beyond = np.abs(curve.slope_of_root(np.linspace(end, 8, 50)) - 1).max()
        return Pieces(tail, first, second, float(end)) if max(shoulder, beyond) <= bound else None

    low, high = -9.0, -2.0
    best = None
    while high - low > 0.01:
        middle = (low + high) / 2
        pieces = reach(10**middle)
        low, high, best = (low, middle, pieces) if pieces else (middle, high, best)
    assert best is not None
    return best


@cache
def fit_float32(name: str, degree: int) -> BranchFit:
    curve = CURVES[name]
    pieces = balanced_pieces(curve, degree)
    shift, least = centring(-curve.y_min, 24)
    fit_piece = partial(minimax_piece, curve, degree)
    return assemble(curve, pieces, degree, fit_piece, shift, to_float32(least), split=True)


# ---- 16-bit types: least squares over all inputs ------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: its precision in bits and its least normal exponent."""

    name: str
    precision: int
    least_exponent: int

    def round(self, y: Array) -> Array:
        exponent = np.maximum(np.frexp(y)[1] - 1, self.least_exponent)
        quantum = np.ldexp(1.0, exponent - self.precision + 1)
        return np.rint(y / quantum) * quantum

    def ulp(self, y: float) -> float:
        return 2.0 ** (math.frexp(y)[1] - self.precision)

    def all_finite(self) -> Array:
        bits = np.arange(2**16, dtype=np.uint16)
        if self.name == "float16":
            values = bits.view(np.float16)
        else:
            values = (bits.astype(np.uint32) << 16).view(np.float32)
        return np.unique(values[np.isfinite(values)].astype(float))


FORMATS = {f.name: f for f in (Format("bfloat16", 8, -126), Format("float16", 11, -14))}


def normal_weights(x: Array, deviation: float) -> Array:
    """The probability under N(0, deviation²) of what rounds to each x."""
    edges = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]]) / deviation
    upper = erfc(edges * math.sqrt(0.5)) / 2
    lower = erfc(-edges * math.sqrt(0.5)) / 2
    weights = np.where(edges[:-1] > 0, -np.diff(upper), np.diff(lower))
    return weights / weights.sum()


class Errors(NamedTuple):
    """Largest error, and its root mean square under N(0, 1), N(0, 4) and with all inputs equal."""

    max: float
    rms: float
    rms_wide: float
    rms_flat: float


class Inputs:
    """All finite inputs of a 16-bit type with their rounded outputs and true gradients."""

    def __init__(self, curve: Curve, fmt: Format) -> None:
        self.curve, self.format = curve, fmt
        self.x = fmt.all_finite()
        self.y = fmt.round(curve.f(self.x))
        self.g = curve.slope(self.x)
        self.left = self.x <= curve.turn
        self.weights = [normal_weights(self.x, deviation) for deviation in (1.0, 2.0)]
        self.ulp = fmt.ulp(curve.y_min)

    def errors(self, decoded: Array) -> Errors:
        error = decoded - self.g
        rms = [math.sqrt(float(np.sum(w * error**2))) for w in self.weights]
        return Errors(float(np.abs(error).max()), *rms, math.sqrt(float(np.mean(error**2))))

    def floor(self) -> Errors:
        """The middle of all gradients that share y and side."""
        decoded = np.empty_like(self.g)
        for side in (self.left, ~self.left):
            values, group = np.unique(self.y[side] + 0.0, return_inverse=True)
            low, high = np.full(len(values), np.inf), np.full(len(values), -np.inf)
            np.minimum.at(low, group, self.g[side])
            np.maximum.at(high, group, self.g[side])
            decoded[side] = ((low + high) / 2)[group]
        return self.errors(decoded)

    def exact_inverse(self) -> Errors:
        return self.errors(self.curve.slope_of_output(self.y, self.left))

    def centring(self) -> tuple[float, float]:
        """The shift of y_min and the least y − y_min that serve the outputs near the minimum."""
        near = self.y < self.curve.y_min + 16 * self.ulp
        above, g = self.y[near] - self.curve.y_min, self.g[near]
        sign, weight = np.where(self.left[near], -1.0, 1.0), self.weights[0][near]
        t = np.linspace(-1, 1, 4001) * math.sqrt(20 * self.ulp)
        slopes = self.curve.slope_of_root(t)
        trials = []
        for shift, least in itertools.product(np.arange(-16, 17) / 64, np.arange(0, 21) / 64):
            lifted = np.maximum(least * self.ulp, above + shift * self.ulp)
            error = np.interp(sign * np.sqrt(lifted), t, slopes) - g
            trials.append((np.abs(error).max(), math.sqrt(np.sum(weight * error**2)), shift, least))
        best_max, best_rms = min(t[0] for t in trials), min(t[1] for t in trials)
        chosen = min(trials, key=lambda trial: trial[0] / best_max + trial[1] / best_rms)
        return float(chosen[2] * self.ulp), float(chosen[3] * self.ulp)


def least_squares(
    w: Array, g: Array, weight: Array, degree: int, constant: float | None
) -> list[float]:
    lowest = 0 if constant is None else 1
    basis = w[:, None] ** np.arange(lowest, degree + 1)
    root = np.sqrt(weight)
    free = np.linalg.lstsq(basis * root[:, None], (g - (constant or 0.0)) * root, rcond=None)[0]
    return ([] if constant is None else [constant]) + free.tolist()


@cache
def economical_pieces(name: str, degree: int) -> Pieces:
    """The breaks with the least mean square error, by a pattern search on a smooth sample."""
    curve = CURVES[name]
    x = np.linspace(-12, 12, 961)
    y, g = curve.f(x), curve.slope(x)
    weight = np.exp(-x * x / 2) + np.exp(-x * x / 8) / 2
    t = np.sqrt(np.maximum(0, y - curve.y_min)) * np.where(x <= curve.turn, -1, 1)
    u = -np.sqrt(np.abs(y))

    def cost(p: Pieces) -> float:
        if not -math.sqrt(-curve.y_min) < p.tail < 0 <= p.first < p.second < p.end:
            return math.inf
        total = 0.0
        bounds = ((-math.inf, p.tail), (p.tail, p.first), (p.first, p.second), (p.second, math.inf))
        for piece, (begin, end) in enumerate(bounds):
            within = (t > begin) & (t <= end)
            if within.sum() <= degree:
                return math.inf
            w = u[within] if piece == 0 else np.minimum(t[within], p.end) - p.end
            coefficients = least_squares(
                w, g[within], weight[within], degree, {0: 0.0, 3: 1.0}.get(piece)
            )
            error = np.polynomial.polynomial.polyval(w, coefficients) - g[within]
            total += float(np.sum(weight[within] * error**2))
        return total

    y_scale = math.sqrt(-curve.y_min)
    best = Pieces(-0.6 * y_scale, 1.4 * y_scale, 3 * y_scale, 5 * y_scale)
    lowest, step = cost(best), 0.2
    while step > 0.005:
        trials = [
            best._replace(**{field: getattr(best, field) + sign * step})
            for field in Pieces._fields
            for sign in (-1, 1)
        ]
        least, trial = min((cost(trial), trial) for trial in trials)
        if least < lowest:
            lowest, best = least, trial
        else:
            step /= 2
    return best


@cache
def inputs_of(name: str, dtype: str) -> Inputs:
    return Inputs(CURVES[name], FORMATS[dtype])


@cache
def fit_16_bit(name: str, dtype: str, degree: int) -> BranchFit:
    inputs = inputs_of(name, dtype)
    curve = inputs.curve
    shift, least = inputs.centring()
    weight = inputs.weights[0] + inputs.weights[1]
    y, g, left = inputs.y, inputs.g, inputs.left

    def fit_piece(
        piece: int, begin: float, end: float, center: float, constant: float | None
    ) -> list[float]:
        if piece == 0:
            within = left & (y > -begin * begin)
            w = -np.sqrt(np.abs(y[within]))
        else:
            tail = left & (y > on_grid(pieces.y_tail(curve), 4096))
            t = np.sqrt(np.maximum(least, y - curve.y_min + shift)) * np.where(left, -1, 1)
            within = ~tail & ((t > begin) | (piece == 1)) & ((t <= end) | (piece == 3))
            w = np.minimum(t[within], end) - center
        return least_squares(w, g[within], weight[within], degree, constant)

    pieces = economical_pieces(name, degree)
    return assemble(curve, pieces, degree, fit_piece, shift, to_float32(least))


# ---- output -------------------------------------------------------------------------------------

HEADER = "generated by tools/fit_df_y.py, do not edit"


def fit_table(name: str, dtype: str, degree: int) -> BranchFit:
    return fit_float32(name, degree) if dtype == "float32" else fit_16_bit(name, dtype, degree)


def all_tables() -> dict[str, dict[str, BranchFit]]:
    return {
        name: {dtype: fit_table(name, dtype, degree) for dtype, degree in degrees.items()}
        for name, degrees in DEGREES.items()
    }


def render_python(tables: dict[str, dict[str, BranchFit]]) -> str:
    lines = [
        f'"""{HEADER}.',
        "",
        "f' from the output: `BranchFit` says how a table is evaluated.",
        '"""',
        "",
        "# fmt: off",
        "# ruff: noqa: E501",
        "from ._branch_fit import BranchFit, Minimum",
        "",
        "TABLES: dict[str, dict[str, BranchFit]] = {",
    ]
    for name, by_dtype in tables.items():
        lines.append(f'    "{name}": {{')
        for dtype, fit in by_dtype.items():
            lines.append(f'        "{dtype}": BranchFit(')
            fields = [field.name for field in dataclasses.fields(fit) if field.init]
            fields.remove("coefficients")  # which begin lines of their own
            lines += [f"            {name}={getattr(fit, name)!r}," for name in fields]
            lines.append("            coefficients=(")
            lines += [f"                {row!r}," for row in fit.coefficients]
            lines += ["            ),", "        ),"]
        lines.append("    },")
    lines += ["}", '"""By function, then by the dtype that y was rounded to."""', ""]
    lines.append("MINIMA: dict[str, Minimum] = {")
    lines += [
        f'    "{c.name}": Minimum({c.turn!r}, {c.y_min!r}, {c.bend!r}),' for c in CURVES.values()
    ]
    lines.append("}")
    return "\n".join(lines) + "\n"


def hex_float(x: float) -> str:
    """Like 0x1.8p-3f, without the zeros that float.hex pads with."""
    mantissa, exponent = x.hex().split("p")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}p{exponent}f"


CPP_INTRODUCTION = f"""\
// {HEADER}
//
// f' from the output y and the side, in float:
//
//   tail  = left && y > y_tail
//   root  = sqrt(tail ? |y| : max(least, (min(y, y_max) + y_min_hi) + y_min_lo))
//   t     = left ? -root : root
//   piece = tail ? 0 : left ? 1 : 1 + (y > break1) + (y > break2)
//   f'    = sum of coefficient[k][piece] * (t - center[piece])^k
//
// y_min_lo is 0 in the tables of 16-bit types: that addition may be left out.
#pragma once
"""


def render_cpp(tables: dict[str, dict[str, BranchFit]]) -> str:
    suffix = {"float32": "Float32", "bfloat16": "BFloat16", "float16": "Float16"}

    def four(values: Sequence[float]) -> str:
        return "{" + ", ".join(map(hex_float, values)) + "}"

    lines = [CPP_INTRODUCTION, "namespace mishkit {", "namespace df_y {"]
    for name, by_dtype in tables.items():
        curve = CURVES[name]
        for dtype, fit in by_dtype.items():
            degree = len(fit.coefficients) - 1
            lines += ["", f"struct {curve.cpp_name}{suffix[dtype]} {{"]
            lines.append(f"  static constexpr int degree = {degree};")
            scalars = ("y_min_hi", "y_min_lo", "least", "y_tail", "y_max")
            values = {field: getattr(fit, field) for field in scalars}
            values |= {"break1": fit.breaks[0], "break2": fit.breaks[1]}
            for field, value in values.items():
                lines.append(f"  static constexpr float {field} = {hex_float(value)};")
            lines.append(f"  static constexpr float center[4] = {four(fit.centers)};")
            lines.append("  static constexpr float coefficient[degree + 1][4] = {")
            lines += [f"      {four(row)}," for row in fit.coefficients]
            lines.append("  };")
            lines.append(f"  static constexpr double turn = {curve.turn!r};")
            lines.append(f"  static constexpr double y_min = {curve.y_min!r};")
            lines.append(f"  static constexpr double bend = {curve.bend!r};")
            lines.append("};")
    lines += ["", "}  // namespace df_y", "}  // namespace mishkit"]
    return "\n".join(lines) + "\n"


def report() -> None:
    """The figures that DEGREES was chosen by."""
    for name, degrees in DEGREES.items():
        curve = CURVES[name]
        x = np.concatenate([np.linspace(-40, 20, 200_001), curve.turn + np.linspace(-1, 1, 20_001)])
        y = curve.f(x).astype(np.float32).astype(float)
        left = x <= curve.turn
        truth = curve.slope_of_output(y, left)
        for degree in range(degrees["float32"] - 1, degrees["float32"] + 2):
            fit = fit_float32(name, degree)
            error = np.abs(evaluate(fit, y, left) - truth).max()
            print(f"{name:10} float32   degree {degree:2}  max {error:.2e}")
        for dtype in FORMATS:
            inputs = inputs_of(name, dtype)
            rows = {"exact inverse": inputs.exact_inverse(), "floor": inputs.floor()}
            for degree in range(degrees[dtype] - 1, degrees[dtype] + 2):
                fit = fit_16_bit(name, dtype, degree)
                rows[f"degree {degree}"] = inputs.errors(evaluate(fit, inputs.y, inputs.left))
            for label, errors in rows.items():
                figures = "  ".join(f"{key} {value:.3e}" for key, value in errors._asdict().items())
                print(f"{name:10} {dtype:9} {label:14} {figures}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    parser.add_argument("--report", action="store_true", help="print what the tables achieve")
    arguments = parser.parse_args()
    if arguments.report:
        report()
        return 0
    tables = all_tables()
    outdated = []
    for path, text in ((PYTHON_TARGET, render_python(tables)), (CPP_TARGET, render_cpp(tables))):
        if arguments.check:
            if not path.exists() or path.read_text() != text:
                outdated.append(str(path.relative_to(ROOT)))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if outdated:
        print("not what tools/fit_df_y.py writes:", *outdated, file=sys.stderr)
    return 1 if outdated else 0


if __name__ == "__main__":
    sys.exit(main())
