"""`mishkit fit`: find the parameters that bring a cheap family of functions closest to a target.

A global search over the whole box of parameters (differential evolution, with a fixed seed) is
followed by a local one (SLSQP; for the largest error, over the points where the error peaks). Both
work in float64. The reported errors are found by calculus on the definitions, to 30 digits.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import scipy.optimize
import sympy
from mpmath import mpf
from numpy.typing import NDArray
from rich.console import Console
from sympy.parsing.sympy_parser import parse_expr

from mishkit.functions import ACTIVATIONS

from .. import LabError
from ..common.bars import console, table
from ..common.formats import print_json
from ..common.named import Named, finite
from .analysis import Number, show
from .analyze import curve_of, extrema, farthest, l2, magnitude, number
from .curve import WORKING, Curve, X, parse
from .notation import unicode

Array = NDArray[np.float64]

POINTS = 1201
"""Sample points of the interval or of the distribution."""
SECTIONS, NODES = 32, 12
"""Sections and nodes of Gauss's rule in the local search."""
SIGMAS = 8
"""A normal distribution is sampled out to this many standard deviations."""
SEED = 0
PENALTY = 10.0
"""The cost in the global search of missing a constraint by 1."""
TIE = 1e-6
"""The weight of the root mean square, which decides between members with the same largest error."""
TOLERANCE = 1e-6
"""How far a constraint may be missed and still count as met."""
ROUNDS = 6
"""Rounds of the local search for the largest error, each with the peaks of the previous one."""
CONSTRAINTS = {
    "place": "the minimum is where the target's is",
    "depth": "the minimum is as deep as the target's",
    "smooth": "f′ is continuous at the last joint",
}


@dataclass(frozen=True)
class Free:
    """A free parameter, and where to search for it."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class Family:
    """A family of functions of one form."""

    name: str
    expression: str
    parameters: tuple[Free, ...]
    published: tuple[tuple[str, tuple[float, ...]], ...] = ()


CLAMP = Family(
    "clamp",
    "x*Min(k, Max(0, x + b))/k",
    (Free("b", 0.25, 8.0), Free("k", 0.25, 16.0)),
    (
        ("hard Mish, k = 5", (3, 5)),
        ("hard Mish, k = 5, b = 2.8", (2.8, 5)),
        ("hard Mish, k = 3", (3, 3)),
        ("hardswish", (3, 6)),
        ("H-Mish", (2, 2)),
    ),
)
"""x·clamp(x + b, 0, k)/k: two straight ends and a parabola in between, with neither end fixed."""


@dataclass(frozen=True)
class Measure:
    """What to minimise."""

    kind: str
    """"max" over [a, b], or L2 under "normal" N(0, a²) or "uniform" on [a, b]."""
    a: float
    b: float

    def __post_init__(self) -> None:
        if self.kind == "normal":
            if not self.a > 0:
                raise LabError("the deviation of a normal distribution must be positive")
        elif not self.a < self.b:
            raise LabError("an interval must be given as low,high")

    def __str__(self) -> str:
        if self.kind == "normal":
            return f"L2 error under N(0, {self.a:g}²)"
        error = "largest error" if self.kind == "max" else "L2 error, uniform"
        return f"{error} on [{show(self.a)}, {show(self.b)}]"

    @property
    def points(self) -> Array:
        """The points at which functions are compared in the search."""
        if self.kind == "normal":
            return np.linspace(-SIGMAS * self.a, SIGMAS * self.a, POINTS)
        return np.linspace(self.a, self.b, POINTS)

    def density(self, x: Array) -> Array:
        """The density of the distribution."""
        if self.kind == "normal":
            bell: Array = np.exp(-0.5 * (x / self.a) ** 2) / (self.a * np.sqrt(2 * np.pi))
            return bell
        return np.full_like(x, 1 / (self.b - self.a))

    @property
    def weights(self) -> Array:
        """The weights for summing squared errors, by the trapezoidal rule."""
        density = self.density(self.points)
        density[[0, -1]] /= 2
        weights: Array = density / density.sum()
        return weights

    def exactly(self, target: Curve, fitted: Curve) -> mpf:
        """The error, to 30 digits."""
        if self.kind == "max":
            return magnitude(farthest(target, fitted, self.a, self.b)[0])
        if self.kind == "normal":
            return l2(target, fitted, self.a)
        difference = target.minus(fitted)
        with mpmath.workdps(WORKING):
            whole = difference.integral(lambda p, z: p.quick(z) ** 2, mpf(self.a), mpf(self.b))
            return mpmath.sqrt(whole / (mpf(self.b) - mpf(self.a)))

    @property
    def interval(self) -> tuple[float, float]:
        """Where the largest error is searched for."""
        return (-mpmath.inf, mpmath.inf) if self.kind == "normal" else (self.a, self.b)


@dataclass(frozen=True)
class Candidate:
    """A member of the family, and how close it is to the target."""

    label: str
    parameters: dict[str, float]
    error: Number
    """The error by the measure."""
    largest: Number
    """The largest |difference| on the measure's interval (the whole real line for a normal
    distribution).
    """
    at: Number | None
    """Where the largest difference is."""
    rank: int
    """1 for the member closest by the measure."""


@dataclass(frozen=True)
class Fit:
    """The result of `fit`."""

    target: str
    family: str
    formula: str
    measure: str
    constraints: tuple[str, ...]
    fitted: Candidate
    published: tuple[Candidate, ...]
    """The published members, closest first. With constraints, some may be closer than the fit."""

    def to_json(self) -> str:
        """Everything as JSON."""
        return json.dumps(dataclasses.asdict(self), default=float, indent=2, ensure_ascii=False)


# ---- the question --------------------------------------------------------------------------------


def parse_measure(text: str) -> Measure:
    """Parse "max", "max:-4,4", "normal:1" or "uniform:-3,3"."""
    kind, _, arguments = text.partition(":")
    try:
        numbers = [finite(part) for part in arguments.split(",")] if arguments else []
    except ValueError:
        numbers = [float("nan")]
    defaults = {"max": [-10.0, 10.0], "normal": [1.0], "uniform": None}
    if kind in defaults:
        numbers = numbers or defaults[kind] or []
        if len(numbers) == (1 if kind == "normal" else 2):
            return Measure(kind, numbers[0], numbers[-1])
    raise LabError(f'"{text}" is no measure: max, max:LOW,HIGH, normal:SIGMA or uniform:LOW,HIGH')


def find_family(text: str, bounds: Mapping[str, tuple[float, float]] | None = None) -> Family:
    """A function of the table with parameters, `clamp`, or an expression in x and parameters."""
    families = {CLAMP.name: CLAMP} | {
        a.name: Family(
            a.name,
            a.expression,
            tuple(Free(p.name, *_box(p.default, p.positive)) for p in a.parameters),
            a.published,
        )
        for a in ACTIVATIONS.values()
        if a.parameters
    }
    family = families.get(text)
    ranges = dict(bounds or {})
    if family is None:
        if not re.fullmatch(r"[\w\s.,+*/()-]*x[\w\s.,+*/()-]*", text) or "__" in text:
            known = ", ".join(families)
            raise LabError(f'"{text}" is no family: {known}, or an expression in x and parameters')
        try:
            free = parse_expr(text, local_dict={"x": X}).free_symbols - {X}
        except (SyntaxError, TypeError, ValueError) as error:
            raise LabError(f'"{text}" is no expression: {error}') from None
        names = sorted(map(str, free))
        missing = [name for name in names if name not in ranges]
        if missing or not names:
            need = ", ".join(missing) or "at least one parameter"
            raise LabError(f"an expression needs bounds for its parameters: {need}")
        family = Family(text, text, tuple(Free(name, *ranges[name]) for name in names))
    unknown = set(ranges) - {p.name for p in family.parameters}
    if unknown:
        raise LabError(f"{text} has no parameter {', '.join(sorted(unknown))}")
    parameters = tuple(
        Free(p.name, *ranges.get(p.name, (p.low, p.high))) for p in family.parameters
    )
    for p in parameters:
        if not p.low <= p.high:
            raise LabError(f"the bounds of {p.name} are the wrong way round")
    return dataclasses.replace(family, parameters=parameters)


def parse_bounds(
    texts: Sequence[str], fixed: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Parse bounds such as ["k=1,10"], together with fixed values, into {"k": (1, 10)}."""
    bounds = {name: (value, value) for name, value in fixed.items()}
    for text in texts:
        match = re.fullmatch(r"\s*(\w+)\s*=([^,]+),([^,]+)", text)
        try:
            if match is None:
                raise ValueError
            bounds[match[1]] = (finite(match[2]), finite(match[3]))
        except ValueError:
            raise LabError(f'"{text}" is not NAME=LOW,HIGH') from None
    return bounds


def _box(default: float, positive: bool) -> tuple[float, float]:
    """The default search range of a parameter."""
    reach = 8 * max(1.0, abs(default))
    return (default / 20, default * 4) if positive else (default - reach, default + reach)


# ---- the search ----------------------------------------------------------------------------------


class _Problem:
    """One fit in float64: errors and constraints for parameters p, given as columns of an array."""

    def __init__(
        self, target: Named, family: Family, measure: Measure, constraints: Sequence[str]
    ) -> None:
        self.family, self.measure, self.constraints = family, measure, constraints
        self.x, self.weights = measure.points, measure.weights
        target_curve = curve_of(target)
        self._kinks = [float(joint) for joint in target_curve.joints]
        if measure.kind == "max":  # at a joint the error may peak in a kink
            inside = [joint for joint in self._kinks if measure.a < joint < measure.b]
            self.x = np.union1d(self.x, inside)
        symbols = [sympy.Symbol(p.name, real=True) for p in family.parameters]
        names = {str(symbol): symbol for symbol in symbols}
        form = parse_expr(family.expression, local_dict={"x": X, **names})
        self._g = _vectorised(form, [X, *symbols])
        self._joints = [_vectorised(joint, symbols) for joint in _joints(form)]
        self._f = _vectorised(parse(target.activation.expression, target.parameters), [X])
        self.f = self.target(self.x)
        self.free = [i for i, p in enumerate(family.parameters) if p.low < p.high]
        self.fixed = np.array([p.low for p in family.parameters])
        if {"place", "depth"} & set(constraints):
            minima = _minima(target_curve)
            if len(minima) != 1:
                raise LabError(f"{target} has not exactly one minimum to keep")
            self.turn, self.bottom = minima[0]
        if "smooth" in constraints and not self._joints:
            raise LabError(f"{family.name} has no joint to be smooth at")

    def whole(self, p: Array) -> Array:
        """All parameters, given the free ones."""
        full = np.repeat(self.fixed[:, None], p.shape[1], axis=1)
        full[self.free] = p
        return full

    def g(self, x: Array, p: Array) -> Array:
        """The family at x (rows), for every column of free parameters."""
        with np.errstate(all="ignore"):
            y = self._g(x, *(row[None, :] for row in self.whole(p)))
        return np.broadcast_to(y, np.broadcast_shapes(np.shape(y), (x.shape[0], p.shape[1])))

    def target(self, x: Array) -> Array:
        """f at x."""
        with np.errstate(all="ignore"):
            return np.broadcast_to(self._f(x), x.shape)

    def errors(self, p: Array) -> Array:
        """f − g at the points, one column for each column of p."""
        difference = self.f[:, None] - self.g(self.x[:, None], p)
        return np.where(np.isfinite(difference), difference, 1e6)

    def errors_at_joints(self, p: Array) -> Array:
        """f − g at the family's joints, which move with p; one row per joint."""
        rows = []
        full = self.whole(p)
        for joint in self._joints:
            x = np.broadcast_to(joint(*full), full.shape[1:])
            x = np.clip(x, self.measure.a, self.measure.b)[None, :]
            rows.append((self.target(x) - self.g(x, p))[0])
        return np.array(rows).reshape(len(rows), p.shape[1])

    def size(self, p: Array) -> Array:
        """The error by the measure."""
        errors = self.errors(p)
        if self.measure.kind == "max":
            peaks = np.concatenate([errors, self.errors_at_joints(p)])
            largest: Array = np.abs(peaks).max(axis=0)
            return largest + TIE * np.sqrt((errors**2).mean(axis=0))
        return np.sqrt(self.weights @ errors**2)

    def missed(self, p: Array, *, exactly: bool = False) -> Array:
        """By how much each constraint is missed (rows); smooth in p if `exactly`."""
        rows = [getattr(self, f"_{name}")(p, exactly) for name in self.constraints]
        return np.array(rows).reshape(len(rows), p.shape[1])

    def _place(self, p: Array, exactly: bool) -> Array:
        if exactly:  # f′ must vanish there
            h = 1e-4
            steps = self.g(self.turn + h * np.array([[-2.0], [-1.0], [1.0], [2.0]]), p)
            return np.array([1, -8, 8, -1]) @ steps / (12 * h)
        return self._lowest(p)[0] - self.turn

    def _depth(self, p: Array, exactly: bool) -> Array:
        return self._lowest(p)[1] - self.bottom

    def _lowest(self, p: Array) -> tuple[Array, Array]:
        """Where g is smallest among the points, and its value, by a parabola through three."""
        y = self.g(self.x[:, None], p)
        lowest = np.clip(y.argmin(axis=0), 1, len(self.x) - 2)
        columns = np.arange(p.shape[1])
        left, middle, right = (y[lowest + shift, columns] for shift in (-1, 0, 1))
        bend = left - 2 * middle + right
        slope = (right - left) / 2
        shift = np.where(bend > 0, -slope / np.where(bend > 0, bend, 1), 0.0)
        step = self.x[1] - self.x[0]
        return self.x[lowest] + shift * step, middle + shift * slope / 2

    def _smooth(self, p: Array, exactly: bool) -> Array:
        """The jump of f′ at the last joint, by differences that are exact for parabolas."""
        full = self.whole(p)
        joints = np.array([np.broadcast_to(j(*full), full.shape[1:]) for j in self._joints])
        last, h = joints.max(axis=0)[None, :], 1e-4
        left, right = (
            (4 * self.g(last + s * h, p) - self.g(last + 2 * s * h, p) - 3 * self.g(last, p))[0]
            / (2 * s * h)
            for s in (-1, 1)
        )
        jump: Array = right - left
        return jump

    # ---- the two searches

    def globally(self) -> Array:
        """The best member of an evolved population."""

        def cost(p: Array) -> Array:
            missed = np.abs(self.missed(p)).sum(axis=0) if self.constraints else 0.0
            total: Array = self.size(p) + PENALTY * missed
            return total

        box = [(self.family.parameters[i].low, self.family.parameters[i].high) for i in self.free]
        result = scipy.optimize.differential_evolution(
            cost, box, popsize=16, maxiter=150, tol=1e-6, atol=1e-9, polish=False,
            updating="deferred", vectorized=True, **{_seed_name(): SEED},
        )  # fmt: skip
        best: Array = result.x
        return best

    def locally(self, start: Array) -> Array:
        """The nearest local minimum."""
        best = start
        for _ in range(ROUNDS if self.measure.kind == "max" else 1):
            refined = (
                self._minimax(best) if self.measure.kind == "max" else self._least_squares(best)
            )
            better = self._merit(refined) < self._merit(best)
            if not better:
                break
            best = refined
        return best

    def _merit(self, p: Array) -> float:
        column = p[:, None]
        missed = np.abs(self.missed(column, exactly=True)).sum() if self.constraints else 0.0
        size = self.size(column)[0] if self.measure.kind == "max" else self._square(p) ** 0.5
        return float(size + PENALTY * missed)

    def _square(self, p: Array) -> float:
        """The squared L2 error, by Gauss's rule between the joints, which is smooth in p."""
        low, high = self.x[0], self.x[-1]
        full = self.whole(p[:, None])
        joints = [float(np.squeeze(joint(*full))) for joint in self._joints]
        cuts = np.linspace(low, high, SECTIONS + 1)
        edges = np.unique(np.clip([*cuts, *joints, *self._kinks], low, high))
        middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        x = (middle[:, None] + half[:, None] * nodes).ravel()
        weights = (half[:, None] * weights).ravel() * self.measure.density(x)
        error = self.target(x) - self.g(x[:, None], p[:, None])[:, 0]
        return float(weights @ error**2)

    def _equalities(self) -> list[dict[str, Any]]:
        if not self.constraints:
            return []
        n = len(self.free)
        return [
            {"type": "eq", "fun": lambda v: self.missed(v[:n, None], exactly=True)[:, 0]},
        ]

    def _least_squares(self, start: Array) -> Array:
        scale = self._square(start) or 1.0
        result = scipy.optimize.minimize(
            lambda p: self._square(p) / scale,
            start,
            method="SLSQP",
            bounds=self._bounds(),
            constraints=self._equalities(),
            options={"ftol": 1e-15, "maxiter": 300},
        )
        best: Array = result.x
        return best

    def _minimax(self, start: Array) -> Array:
        """Minimise t with −t ≤ error ≤ t at the peaks and at some points in between."""
        errors = np.abs(self.errors(start[:, None])[:, 0])
        inner = (errors[1:-1] >= errors[:-2]) & (errors[1:-1] >= errors[2:])
        peaks = np.flatnonzero(inner) + 1
        last = len(self.x) - 1
        near = {int(np.clip(i + d, 0, last)) for i in peaks for d in range(-12, 13)}
        chosen = np.array(sorted(near | set(range(0, last, 24))))
        x, f = self.x[chosen][:, None], self.f[chosen]
        n = len(self.free)

        def slack(v: Array) -> Array:
            p = v[:n, None]
            error = np.append(f - self.g(x, p)[:, 0], self.errors_at_joints(p)[:, 0])
            return np.concatenate([v[n] - error, v[n] + error])

        result = scipy.optimize.minimize(
            lambda v: float(v[n]),
            np.append(start, self.size(start[:, None])),
            method="SLSQP",
            bounds=[*self._bounds(), (0, None)],
            constraints=[{"type": "ineq", "fun": slack}, *self._equalities()],
            options={"ftol": 1e-14, "maxiter": 300},
        )
        best: Array = result.x[:n]
        return best

    def _bounds(self) -> list[tuple[float, float]]:
        return [(self.family.parameters[i].low, self.family.parameters[i].high) for i in self.free]


@functools.cache
def _seed_name() -> str:
    """The name of SciPy's seed argument, which is being renamed."""
    import inspect

    parameters = inspect.signature(scipy.optimize.differential_evolution).parameters
    return "rng" if "rng" in parameters else "seed"


def _vectorised(expression: sympy.Expr, symbols: Sequence[sympy.Symbol]) -> Callable[..., Array]:
    """The expression as a function of arrays."""
    names = {"Max": ("maximum", np.maximum), "Min": ("minimum", np.minimum)}
    for kind in (sympy.Max, sympy.Min):
        pair = sympy.Function(names[kind.__name__][0])
        expression = expression.replace(
            kind, lambda *parts, pair=pair: functools.reduce(pair, parts)
        )
    return sympy.lambdify(symbols, expression, modules=[dict(names.values()), "scipy", "numpy"])


def _joints(form: sympy.Expr) -> list[sympy.Expr]:
    """Where two arguments of a Min or Max can be equal, or a condition of a Piecewise changes, as
    expressions in the parameters.
    """
    differences = []
    for choice in form.atoms(sympy.Min, sympy.Max):
        parts = [_leaves(argument) for argument in choice.args]
        differences += [
            a - b
            for i, mine in enumerate(parts)
            for theirs in parts[:i]
            for a in mine
            for b in theirs
        ]
    for choice in form.atoms(sympy.Piecewise):
        differences += [
            r.lhs - r.rhs for _, c in choice.args for r in c.atoms(sympy.core.relational.Relational)
        ]
    return sorted(
        {
            root
            for difference in differences
            if difference.has(X) and difference.is_polynomial(X)
            for root in sympy.roots(difference, X)
        },
        key=sympy.default_sort_key,
    )


def _leaves(argument: sympy.Expr) -> list[sympy.Expr]:
    if isinstance(argument, (sympy.Min, sympy.Max)):
        return [leaf for part in argument.args for leaf in _leaves(part)]
    return [argument]


def _minima(curve: Curve) -> list[tuple[float, float]]:
    turns = extrema(curve, curve.stretches(1))
    return [(float(e.x), float(e.y)) for e in turns if e.kind == "minimum"]


def fit(target: Named, family: Family, measure: Measure, constraints: Sequence[str] = ()) -> Fit:
    """The member of the family that is closest to the target.

    Raises
    ------
    LabError
        if a constraint is unknown, does not apply to this target or family, or can't be met
    """
    for name in constraints:
        if name not in CONSTRAINTS:
            raise LabError(f'"{name}" is no constraint; there are {", ".join(CONSTRAINTS)}')
    problem = _Problem(target, family, measure, constraints)
    best = problem.fixed[[]]
    if problem.free:
        best = problem.locally(problem.globally())
    values = problem.whole(best[:, None])[:, 0]
    curve = _member(family, values)
    if constraints:
        _check(problem, curve, constraints)
    target_curve = curve_of(target)
    fitted = _candidate("fitted", family, values, curve, target_curve, measure)
    published = [
        _candidate(label, family, np.array(numbers, dtype=float), None, target_curve, measure)
        for label, numbers in family.published
    ]
    order = sorted([fitted, *published], key=lambda c: c.error)
    ranks = {id(candidate): rank for rank, candidate in enumerate(order, start=1)}
    ranked = [dataclasses.replace(c, rank=ranks[id(c)]) for c in (fitted, *published)]
    return Fit(
        target=str(target),
        family=family.name,
        formula=unicode(parse_expr(family.expression, local_dict=_symbols(family))),
        measure=str(measure),
        constraints=tuple(constraints),
        fitted=ranked[0],
        published=tuple(sorted(ranked[1:], key=lambda c: c.rank)),
    )


def _symbols(family: Family) -> dict[str, sympy.Symbol]:
    return {name: sympy.Symbol(name, real=True) for name in ("x", *_names(family))}


def _names(family: Family) -> list[str]:
    return [p.name for p in family.parameters]


def _member(family: Family, values: Array) -> Curve:
    named = dict(zip(_names(family), map(float, values), strict=True))
    return Curve.of(parse(family.expression, named))


def _check(problem: _Problem, curve: Curve, constraints: Sequence[str]) -> None:
    """Check by calculus that the constraints are met."""
    minima = _minima(curve)
    for name in constraints:
        if name == "smooth":
            off = max((abs(curve.jump(i, 1)) for i in range(len(curve.joints))[-1:]), default=0)
        elif len(minima) != 1:
            off = mpmath.inf
        else:
            (x, y), turn, bottom = minima[0], problem.turn, problem.bottom
            off = abs(x - turn) if name == "place" else abs(y - bottom)
        if off > TOLERANCE:
            meaning = CONSTRAINTS[name]
            raise LabError(
                f'no member within the bounds meets "{name}" ({meaning}); the nearest is '
                f"{show(float(off), 2)} off"
            )


def _candidate(
    label: str,
    family: Family,
    values: Array,
    curve: Curve | None,
    target: Curve,
    measure: Measure,
) -> Candidate:
    curve = curve or _member(family, values)
    largest, place = farthest(target, curve, *measure.interval)
    error = magnitude(largest) if measure.kind == "max" else measure.exactly(target, curve)
    return Candidate(
        label=label,
        parameters=dict(zip(_names(family), map(float, values), strict=True)),
        error=number(error),
        largest=number(magnitude(largest)),
        at=None if place is None else number(place),
        rank=0,
    )


# ---- the command ---------------------------------------------------------------------------------


def main(
    target: Named,
    family: Family,
    measure: Measure,
    constraints: Sequence[str],
    *,
    as_json: bool = False,
    plot: Path | None = None,
) -> None:
    """Run the fit and print it."""
    status = Console(stderr=True)
    with status.status(f"fitting {family.name} to {target}"):
        result = fit(target, family, measure, constraints)
    if as_json:
        print_json(result.to_json())
    else:
        _print(result)
    if plot is not None:
        from . import drawing

        expression = parse(family.expression, result.fitted.parameters)
        label = f"{family.name}: " + _values(result.fitted)
        drawing.save(
            [drawing.of_named(target), drawing.of_expression(label, expression)],
            plot,
            against=drawing.of_named(target),
        )


def _print(result: Fit) -> None:
    out = console()
    constraints = "".join(f"; {CONSTRAINTS[name]}" for name in result.constraints)
    out.print(f"{result.formula}  to  {result.target}: {result.measure}{constraints}", markup=False)
    columns = ("error", "× best", "largest error", "at x", "rank")
    grid = table("", ("", *result.fitted.parameters, *columns))
    candidates = sorted([result.fitted, *result.published], key=lambda c: c.rank)
    for c in candidates:
        ratio = float(c.error) / float(candidates[0].error) if candidates[0].error else 1.0
        grid.add_row(
            c.label,
            *(show(value, 6) for value in c.parameters.values()),
            *(show(c.error, 5), f"{ratio:.2f}", show(c.largest, 5)),
            *("–" if c.at is None else show(c.at, 5), str(c.rank)),
            style="bold" if c.label == "fitted" else "",
        )
    out.print(grid)


def _values(candidate: Candidate) -> str:
    return ", ".join(f"{name} = {show(v, 5)}" for name, v in candidate.parameters.items())
