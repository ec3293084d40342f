"""A function of x, defined in SymPy's notation, for calculus to 30 digits and more.

The definition is cut at its joints into smooth pieces. Each piece is rewritten so that it keeps its
digits in the tails, differentiated symbolically, and evaluated by mpmath with as many digits as the
result needs. Nothing here is specific to any function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import mpmath
import sympy
from mpmath import mpf
from sympy.parsing.sympy_parser import parse_expr

from .. import LabError
from .notation import unicode

DIGITS = 30
"""Correct digits of every result."""
WORKING = DIGITS + 20
"""Digits with which places are stored."""
PRECISIONS = (60, 100, 350, 800)
"""Precisions tried until two of them agree: 1 + tanh and the like cancel in the tails."""
MOST_ORDER = 3
DECADES = 10
A_DECADE = 12
"""The root search samples 10^t about 0 and every joint for −DECADES ≤ t ≤ DECADES, this densely."""
FAR = (mpf(10) ** 20, mpf(10) ** 25)
"""A place where exponentially approached asymptotes are reached, and a second one to compare."""
VANISHING = mpf(10) ** -(WORKING - 10)
"""A difference smaller than this, relative to its terms, is only their rounding."""

X = sympy.Symbol("x", real=True)


def parse(expression: str, values: Mapping[str, float]) -> sympy.Expr:
    """The definition with its parameters substituted, each as the decimal that it is written as."""
    symbols = {name: sympy.Symbol(name, real=True) for name in values}
    parsed = parse_expr(expression, local_dict={"x": X, **symbols})
    exact = {
        symbols[name]: sympy.oo if v == math.inf else sympy.Rational(repr(float(v)))
        for name, v in values.items()
    }
    return parsed.subs(exact)


# ---- pieces ----


class Smooth:
    """A part of a curve without a joint inside: (low, high), where either end may be infinite."""

    def __init__(self, low: mpf, high: mpf) -> None:
        self.low, self.high = low, high
        self._samples: dict[int, list[tuple[mpf, mpf]]] = {}
        self._roots: dict[int, tuple[mpf, ...]] = {}

    def at(self, x: mpf, order: int = 0) -> mpf:
        """The derivative of this order, to `DIGITS` digits; at the ends, from inside."""
        raise NotImplementedError

    def quick(self, x: mpf, order: int = 0) -> mpf:
        """The same, but only to the current precision; for integrals."""
        raise NotImplementedError

    def is_zero(self, order: int) -> bool:
        """Whether this derivative is known to be 0 everywhere on the piece."""
        return False

    def end(self, side: int, order: int) -> mpf:
        """The derivative at the low (−1) or high (+1) end; at infinity, its limit."""
        x = self.low if side < 0 else self.high
        if mpmath.isfinite(x):
            return self.at(x, order)
        near, far = (self.at(side * place, order) for place in FAR)
        scale = max(abs(near), 1)
        if abs(near - far) <= mpf(10) ** -DIGITS * scale:
            return far
        if abs(far) > 100 * abs(near):
            return mpmath.sign(far) * mpmath.inf
        raise LabError("a function that tends to no asymptote, or slowly, is beyond this analysis")

    def samples(self, order: int) -> list[tuple[mpf, mpf]]:
        """Places with the derivative of this order there, densest about 0 and the ends."""
        if order not in self._samples:
            self._samples[order] = [(x, self.at(x, order)) for x in self._grid]
        return self._samples[order]

    @cached_property
    def _grid(self) -> list[mpf]:
        steps = range(-DECADES * A_DECADE, DECADES * A_DECADE + 1)
        with mpmath.workdps(WORKING):
            offsets = [mpf(10) ** (mpf(step) / A_DECADE) for step in steps]
            anchors = {mpf(0)} | {end for end in (self.low, self.high) if mpmath.isfinite(end)}
            places = {anchor + sign * d for anchor in anchors for d in offsets for sign in (-1, 1)}
        return sorted(x for x in places | anchors if self.low < x < self.high)

    def roots(self, order: int) -> tuple[mpf, ...]:
        """Where the derivative of this order changes sign, inside the piece."""
        if order not in self._roots:
            self._roots[order] = () if self.is_zero(order) else tuple(self._find_roots(order))
        return self._roots[order]

    def _find_roots(self, order: int) -> Iterator[mpf]:
        # Between two samples of the same sign it may still cross 0 and come back; then an extremum
        # in between has the other sign.
        samples = self.samples(order)
        if order < MOST_ORDER and not self.is_zero(order + 1):
            samples = sorted({*samples, *self._dips(order)})
        nonzero = [(x, value) for x, value in samples if value]
        for (x, value), (next_x, next_value) in pairwise(nonzero):
            if (value < 0) != (next_value < 0):
                yield self._root(order, x, next_x, value < 0)

    def _dips(self, order: int) -> Iterator[tuple[mpf, mpf]]:
        values, slopes = self.samples(order), self.samples(order + 1)
        rows = list(zip(values, slopes, strict=True))
        for ((x, value), (_, slope)), ((next_x, next_value), (_, next_slope)) in pairwise(rows):
            towards = value * slope < 0 and next_value * next_slope > 0
            if value * next_value > 0 and towards:
                bottom = self._root(order + 1, x, next_x, slope < 0)
                yield bottom, self.at(bottom, order)

    def _root(self, order: int, low: mpf, high: mpf, rises: bool) -> mpf:
        """Newton's method between brackets that close by bisection where a step leaves them."""
        with mpmath.workdps(WORKING + 10):
            x = (low + high) / 2
            for _ in range(400):
                value = self.at(x, order)
                if not value:
                    break
                low, high = (x, high) if (value < 0) == rises else (low, x)
                slope = self.at(x, order + 1) if order < MOST_ORDER else mpf(0)
                newton = x - value / slope if slope else low
                new_x = newton if low < newton < high else (low + high) / 2
                is_close = abs(new_x - x) <= mpf(10) ** -WORKING * max(abs(x), mpf(10) ** -DIGITS)
                x = new_x
                if is_close:
                    break
            return x

    def stretches(self, order: int) -> list[Stretch]:
        """The piece cut at the roots of this derivative, with its sign on each part."""
        if self.is_zero(order):
            return [Stretch(self.low, self.high, 0)]
        edges = [self.low, *self.roots(order), self.high]
        stretches = []
        for low, high in pairwise(edges):
            inside = [value for x, value in self.samples(order) if low < x < high and value]
            if inside:
                sign = int(mpmath.sign(max(inside, key=abs)))
            else:  # narrower than the grid
                sign = int(mpmath.sign(self.at((low + high) / 2, order)))
            stretches.append(Stretch(low, high, sign))
        return stretches


@dataclass(frozen=True)
class Stretch:
    """Where a derivative has one sign; if low equals high, a jump with that sign."""

    low: mpf
    high: mpf
    sign: int


class Piece(Smooth):
    """A smooth part of a definition."""

    def __init__(self, low: mpf, high: mpf, expression: sympy.Expr) -> None:
        super().__init__(low, high)
        self.expression = expression
        form = _conditioned(expression)
        self.forms = [form]
        for _ in range(MOST_ORDER):
            self.forms.append(_factored(sympy.diff(self.forms[-1], X)))
        self._known: dict[tuple[mpf, int], mpf] = {}
        self._quick: dict[tuple[mpf, int, int], mpf] = {}
        self._functions = [sympy.lambdify(X, f, modules="mpmath", cse=True) for f in self.forms]

    def is_zero(self, order: int) -> bool:
        return bool(self.forms[order] == 0)

    def quick(self, x: mpf, order: int = 0) -> mpf:
        key = x, order, mpmath.mp.prec
        if key not in self._quick:  # integrals share their places
            self._quick[key] = mpf(self._functions[order](x))
        return self._quick[key]

    def at(self, x: mpf, order: int = 0) -> mpf:
        if self.is_zero(order):
            return mpf(0)
        if (x, order) not in self._known:
            self._known[x, order] = self._settled(x, order)
        return self._known[x, order]

    def _settled(self, x: mpf, order: int) -> mpf:
        previous = None
        for digits in PRECISIONS:
            with mpmath.workdps(digits):
                value = mpf(self._functions[order](x))
                if previous is not None and abs(value - previous) <= mpf(10) ** -DIGITS * abs(
                    value
                ):
                    return value
            previous = value
        return mpf(0)

    def derivative(self, order: int) -> sympy.Expr:
        """The derivative of this order in its shortest form, for display."""
        raw = sympy.diff(self.expression, X, order)
        forms = [raw, sympy.factor_terms(raw), self.forms[order]]
        return min(forms, key=lambda form: len(unicode(form)))


class Difference(Smooth):
    """The difference of two curves, on a part where both are smooth."""

    def __init__(self, low: mpf, high: mpf, minuend: Smooth, subtrahend: Smooth) -> None:
        super().__init__(low, high)
        self.minuend, self.subtrahend = minuend, subtrahend

    def quick(self, x: mpf, order: int = 0) -> mpf:
        return self.minuend.quick(x, order) - self.subtrahend.quick(x, order)

    def at(self, x: mpf, order: int = 0) -> mpf:
        minuend, subtrahend = self.minuend.at(x, order), self.subtrahend.at(x, order)
        with mpmath.workdps(PRECISIONS[0]):
            difference = minuend - subtrahend
        # Each has a limited number of digits; if all of them agree, there is no difference.
        significant = abs(difference) > mpf(10) ** -(DIGITS - 2) * (abs(minuend) + abs(subtrahend))
        return difference if significant else mpf(0)

    def is_zero(self, order: int) -> bool:
        minuend, subtrahend = self.minuend, self.subtrahend
        if minuend.is_zero(order) and subtrahend.is_zero(order):
            return True
        if not (isinstance(minuend, Piece) and isinstance(subtrahend, Piece)):
            return False
        return bool(minuend.forms[order] == subtrahend.forms[order])


# ---- curves ----


class Curve:
    """A function on the whole line: pieces in order, each beginning where the last one ends."""

    def __init__(self, pieces: Sequence[Smooth]) -> None:
        self.pieces = tuple(pieces)

    @classmethod
    def of(cls, expression: sympy.Expr) -> Curve:
        """The curve of a definition in x alone."""
        cut = list(_cut(_plain(expression), -sympy.oo, sympy.oo))
        merged = [cut[0]]
        for low, high, part in cut[1:]:
            if sympy.simplify(part - merged[-1][2]) == 0:
                merged[-1] = (merged[-1][0], high, part)
            else:
                merged.append((low, high, part))
        return cls([Piece(_number(low), _number(high), part) for low, high, part in merged])

    def minus(self, other: Curve) -> Curve:
        """The difference of two curves."""
        edges = sorted({*self.joints, *other.joints})
        edges = [-mpmath.inf, *edges, mpmath.inf]
        return Curve(
            [
                Difference(low, high, self.piece(low, high), other.piece(low, high))
                for low, high in pairwise(edges)
            ]
        )

    def piece(self, low: mpf, high: mpf) -> Smooth:
        """The piece that contains an interval."""
        return next(p for p in self.pieces if p.low <= low and high <= p.high)

    @property
    def joints(self) -> list[mpf]:
        """Where pieces meet."""
        return [piece.low for piece in self.pieces[1:]]

    def at(self, x: mpf, order: int = 0) -> mpf:
        """The derivative of this order at x; at a joint, from the left."""
        return next(p for p in self.pieces if x <= p.high).at(x, order)

    def jump(self, joint: int, order: int) -> mpf:
        """How much larger this derivative is on the right of a joint than on the left."""
        left, right = self.pieces[joint].end(1, order), self.pieces[joint + 1].end(-1, order)
        with mpmath.workdps(WORKING):
            jump = right - left
        return jump if abs(jump) > VANISHING * (abs(left) + abs(right)) else mpf(0)

    def stretches(self, order: int) -> list[Stretch]:
        """The sign of this derivative by interval; jumps of the derivative below also count."""
        stretches: list[Stretch] = []
        for number, piece in enumerate(self.pieces):
            if number:
                jump = self.jump(number - 1, order - 1)
                if jump:
                    stretches.append(Stretch(piece.low, piece.low, int(mpmath.sign(jump))))
            stretches += piece.stretches(order)
        return stretches

    def extremes(self, order: int) -> list[tuple[mpf, mpf, Smooth]]:
        """The places that can be extremes of this derivative, with values: infinities, both sides
        of joints, and stationary points, each with its piece.
        """
        extremes = []
        for piece in self.pieces:
            inside = [(x, piece.at(x, order)) for x in piece.roots(order + 1)]
            ends = [(piece.low, piece.end(-1, order)), (piece.high, piece.end(1, order))]
            extremes += [(x, value, piece) for x, value in (ends[0], *inside, ends[1])]
        return extremes

    def expectation(self, function: Callable[[Smooth, mpf], mpf], scale: float = 1.0) -> mpf:
        """E[function(piece, z)] for z ~ N(0, scale²); to at most `DIGITS` digits."""
        sigma = mpf(scale)

        def weighted(piece: Smooth, z: mpf) -> mpf:
            return function(piece, z) * mpmath.exp(-((z / sigma) ** 2) / 2)

        integral = self.integral(weighted, -16 * sigma, 16 * sigma)
        with mpmath.workdps(DIGITS + 10):
            return integral / (sigma * mpmath.sqrt(2 * mpmath.pi))

    def integral(self, function: Callable[[Smooth, mpf], mpf], low: mpf, high: mpf) -> mpf:
        """∫ function(piece, z) dz between two numbers; to at most `DIGITS` digits."""
        total = mpf(0)
        with mpmath.workdps(DIGITS + 10):
            for piece in self.pieces:
                edges = self._edges(piece, mpf(low), mpf(high))
                if len(edges) > 1:
                    integrand = partial(function, piece)
                    total += mpmath.quad(integrand, edges, method="gauss-legendre")
        return total

    def _edges(self, piece: Smooth, least: mpf, most: mpf) -> list[mpf]:
        """Ends of intervals on each of which Gauss's rule is exact to all digits. The intervals are
        as long as the nearest bend is far from 0, since the piece's poles are about that far from
        the real line.
        """
        low, high = max(piece.low, least), min(piece.high, most)
        if low >= high:
            return []
        reach = max(abs(least), abs(most))
        bends = [abs(x) for x in (*piece.roots(1), *piece.roots(2)) if x]
        unit = min([reach / 16, *(bend for bend in bends if bend > reach / 10**12)])
        places, step = [mpf(0)], unit
        while places[-1] < reach:
            places.append(places[-1] + step)
            if places[-1] > 16 * unit:  # beyond its bends the function is almost straight
                step = min(2 * step, reach / 16)
        inside = {s * x for x in places for s in (-1, 1) if low < s * x < high}
        return [low, *sorted(inside), high]


# ---- expressions ----


def _number(value: sympy.Expr) -> mpf:
    with mpmath.workdps(PRECISIONS[-1]):
        if value.is_infinite:
            return mpmath.inf if value > 0 else -mpmath.inf
        return mpmath.mpf(value.evalf(PRECISIONS[-1]))


def _plain(expression: sympy.Expr) -> sympy.Expr:
    return expression.replace(sympy.Abs, lambda u: sympy.Max(u, -u))


_CUTS = (sympy.Min, sympy.Max, sympy.Piecewise)


def _cut(
    expression: sympy.Expr, low: sympy.Expr, high: sympy.Expr
) -> Iterator[tuple[sympy.Expr, sympy.Expr, sympy.Expr]]:
    """The smooth expressions of a definition, from left to right, with their intervals."""
    inner = next(
        (e for e in sympy.postorder_traversal(expression) if isinstance(e, _CUTS)),
        None,
    )
    if inner is None:
        yield low, high, expression
        return
    if isinstance(inner, sympy.Piecewise):
        relations = {r for _, c in inner.args for r in c.atoms(sympy.core.relational.Relational)}
        differences = [r.lhs - r.rhs for r in relations]
    else:
        arguments = list(inner.args)
        differences = [a - b for i, a in enumerate(arguments) for b in arguments[:i]]
    places = {root for d in differences for root in _roots(d) if low < root < high}
    edges = [low, *sorted(places), high]
    for begin, end in pairwise(edges):
        inside = _between(begin, end)
        yield from _cut(expression.xreplace({inner: _chosen(inner, inside)}), begin, end)


def _chosen(choice: sympy.Expr, x: sympy.Expr) -> sympy.Expr:
    """The argument of a Min or Max, or the branch of a Piecewise, that applies at x."""
    if isinstance(choice, sympy.Piecewise):
        return next(branch for branch, condition in choice.args if condition.subs(X, x) == True)  # noqa: E712
    best = min if isinstance(choice, sympy.Min) else max
    return best(choice.args, key=lambda argument: argument.subs(X, x))


def _roots(difference: sympy.Expr) -> list[sympy.Expr]:
    if not difference.has(X):
        return []
    if not difference.is_polynomial(X):
        raise LabError(f"where {difference} is 0, and pieces meet, is beyond this analysis")
    return list(set(sympy.real_roots(sympy.Poly(difference, X))))


def _between(low: sympy.Expr, high: sympy.Expr) -> sympy.Expr:
    if low.is_infinite:
        return sympy.S.Zero if high.is_infinite else sympy.floor(high) - 1
    return sympy.ceiling(low) + 1 if high.is_infinite else (low + high) / 2


def _conditioned(expression: sympy.Expr) -> sympy.Expr:
    """A form whose tails don't cancel: written with exp and erfc, as a quotient of products."""
    expression = expression.replace(sympy.tanh, lambda u: 1 - 2 / (sympy.exp(2 * u) + 1))
    expression = expression.replace(sympy.erf, lambda u: sympy.erfc(-u) - 1)
    return _factored(expression.rewrite((sympy.sinh, sympy.cosh, sympy.coth), sympy.exp))


def _factored(expression: sympy.Expr) -> sympy.Expr:
    """A quotient of products, using only the algebra of rational functions.

    Powers of e with commensurable exponents become powers of one unknown. Anything else that is not
    rational (√2, π, erfc, ln) becomes an unknown of its own. SymPy's own `simplify`, and its
    factoring over √2 and π, may take minutes.
    """
    back: dict[sympy.Expr, sympy.Expr] = {}
    expression = sympy.expand_power_exp(expression)
    for bases in _commensurable(expression):
        unknown = sympy.Dummy(positive=True)
        back[unknown] = sympy.exp(bases[0][0] / bases[0][1])
        expression = expression.xreplace({sympy.exp(arg): unknown**n for arg, n in bases})
    for atom in sorted(expression.atoms(sympy.Function), key=sympy.default_sort_key):
        if not isinstance(atom, sympy.exp) or not atom.has(*back):
            unknown = sympy.Dummy(real=True)
            back[unknown] = atom
            expression = expression.xreplace({atom: unknown})
    roots = {p for p in expression.atoms(sympy.Pow) if p.exp.is_Rational and not p.exp.is_Integer}
    for atom in sorted(roots | expression.atoms(sympy.NumberSymbol), key=sympy.default_sort_key):
        if atom in roots and atom.base.has(X, *back):
            continue
        unknown = sympy.Dummy(positive=True)
        back[unknown] = atom
        expression = expression.xreplace({atom: unknown})
    factored = sympy.factor(expression)
    for unknown, value in reversed(back.items()):
        factored = factored.xreplace({unknown: value})
    return factored


def _commensurable(expression: sympy.Expr) -> Iterator[list[tuple[sympy.Expr, int]]]:
    """The exponents of e, grouped by integer multiples of a common one, with the multiples."""
    groups: list[list[sympy.Expr]] = []
    for power in sorted(expression.atoms(sympy.exp), key=sympy.default_sort_key):
        for group in groups:
            if sympy.cancel(power.args[0] / group[0]).is_Rational:
                group.append(power.args[0])
                break
        else:
            groups.append([power.args[0]])
    for group in groups:
        ratios = [sympy.Rational(sympy.cancel(arg / group[0])) for arg in group]
        unit = ratios[0]
        for ratio in ratios[1:]:
            unit = sympy.Rational(sympy.gcd(unit, ratio))
        # Use e^x rather than e^−x if there is one.
        falls = group[0].has(X) and sympy.Poly(sympy.expand(group[0]), X).LC().is_negative
        sign = -1 if falls else 1
        yield [(arg, int(ratio / unit) * sign) for arg, ratio in zip(group, ratios, strict=True)]
