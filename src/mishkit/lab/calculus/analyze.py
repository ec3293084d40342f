"""`mishkit explain`: the properties of a function, by calculus on its definition.

Everything is derived from the definition (`Activation.expression`) with the parameters substituted.
To find roots, ±10^t about 0 and every joint is scanned for −10 ≤ t ≤ 10 in steps of 1/12, looking
for sign changes and for dips towards 0; each is then refined to 30 digits. Integrals use Gaussian
quadrature. Two roots closer to each other than the scan's steps (a factor of 1.21) that also leave
no dip would be missed.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache

import mpmath
import sympy
from mpmath import mpf

from .. import LabError
from ..common.named import Named, find
from .analysis import (
    Analysis,
    Distance,
    End,
    Extremum,
    Formula,
    Gaussian,
    Inflection,
    Joint,
    Lipschitz,
    Number,
    Part,
    Range,
    Shape,
    show,
)
from .cost import measure
from .curve import DIGITS, WORKING, Curve, Piece, Smooth, Stretch, X, parse
from .notation import latex, unicode


def analyze(
    name: str,
    /,
    *,
    against: str | None = None,
    cost: bool = False,
    **parameters: float,
) -> Analysis:
    """Derive a function's properties from its definition: see `mishkit.analyze`."""
    return analyze_named(find(name, parameters), find(against) if against else None, cost=cost)


def analyze_named(named: Named, against: Named | None = None, *, cost: bool = False) -> Analysis:
    """The same, for functions that have already been looked up."""
    curve = curve_of(named)
    distance = None
    if against is not None:
        distance = distance_between(curve, curve_of(against), against)
    costs = None
    if cost:
        costs = measure(named)
    falls = curve.stretches(1)
    bends = curve.stretches(2)
    return Analysis(
        name=named.activation.name,
        parameters=named.parameters,
        formula=named.activation.formula,
        parts=tuple(_part(piece) for piece in curve.pieces if isinstance(piece, Piece)),
        range=_range(curve),
        extrema=tuple(extrema(curve, falls)),
        inflections=tuple(_inflections(curve, bends)),
        ends=(_end(curve, -1), _end(curve, 1)),
        joints=tuple(_joint(curve, number) for number in range(len(curve.joints))),
        lipschitz_f=_lipschitz(curve, 0),
        lipschitz_df=_lipschitz(curve, 1),
        gaussian=_gaussian(curve),
        shape=_shape(falls, bends),
        against=distance,
        cost=costs,
    )


@lru_cache(maxsize=32)
def curve_of(named: Named) -> Curve:
    """The curve of a function with its parameters; its results are cached."""
    return Curve.of(parse(named.activation.expression, named.parameters))


def number(value: mpf) -> Number:
    """The value rounded to `DIGITS` significant digits."""
    if not mpmath.isfinite(value):
        return Decimal("Infinity") if value > 0 else Decimal("-Infinity")
    with mpmath.workdps(WORKING):
        # A root at 0 is found to this many decimals.
        if abs(value) < mpf(10) ** -(WORKING - 2):
            return Decimal(0)
        return Decimal(mpmath.nstr(value, DIGITS, strip_zeros=True))


def magnitude(value: mpf) -> mpf:
    """value| with all its digits; abs would round to mpmath's current precision."""
    with mpmath.workdps(WORKING):
        return abs(value)


def distance_between(curve: Curve, reference: Curve, named: Named) -> Distance:
    """The distance between two curves; `named` is the second one."""
    largest, place = farthest(curve, reference)
    return Distance(
        other=named.activation.name,
        parameters=named.parameters,
        max_error=number(magnitude(largest)),
        at=None if place is None else number(place),
        signed=number(largest),
        l2=number(l2(curve, reference)),
    )


def farthest(
    curve: Curve, reference: Curve, low: float = -mpmath.inf, high: float = mpmath.inf
) -> tuple[mpf, mpf | None]:
    """The difference of two curves that is largest in magnitude between two places, and where it is
    (None if there is none).
    """
    difference = curve.minus(reference)
    largest, place = mpf(0), None
    candidates = [(x, value) for x, value, _ in difference.extremes(0) if low <= x <= high]
    candidates += [(x, difference.at(x)) for x in (mpf(low), mpf(high)) if mpmath.isfinite(x)]
    for x, value in candidates:
        # Report infinity only if no finite place reaches the same value.
        closer = place is not None and mpmath.isinf(place) and mpmath.isfinite(x)
        if abs(value) > abs(largest) or (value and abs(value) == abs(largest) and closer):
            largest, place = value, x
    return largest, place


def l2(curve: Curve, reference: Curve, scale: float = 1.0) -> mpf:
    """√E[(f(z) − g(z))²], z ~ N(0, scale²)."""
    with mpmath.workdps(WORKING):
        return mpmath.sqrt(curve.minus(reference).expectation(lambda p, z: p.quick(z) ** 2, scale))


def _part(piece: Piece) -> Part:
    forms = [piece.expression, piece.derivative(1), piece.derivative(2)]
    f, df, d2f = (Formula(unicode(form), latex(form)) for form in forms)
    return Part(number(piece.low), number(piece.high), f, df, d2f)


def _range(curve: Curve) -> Range:
    extremes = curve.extremes(0)
    ends = []
    for best in (min, max):
        value = best(value for _, value, _ in extremes)
        attained = any(
            mpmath.isfinite(x) or piece.is_zero(1)
            for x, y, piece in extremes
            if mpmath.isfinite(y) and _same(y, value)
        )
        ends.append((number(value), attained))
    (low, has_low), (high, has_high) = ends
    return Range(low, high, has_low, has_high)


def _same(a: mpf, b: mpf) -> bool:
    if not (mpmath.isfinite(a) and mpmath.isfinite(b)):
        return bool(a == b)
    with mpmath.workdps(WORKING):
        return bool(abs(a - b) <= mpf(10) ** -(DIGITS - 3) * max(1, abs(b)))


def extrema(curve: Curve, falls: list[Stretch]) -> list[Extremum]:
    turns, last_sign, flat_from = [], 0, None
    for stretch in falls:
        if stretch.low == stretch.high:  # a jump
            continue
        if not stretch.sign:
            flat_from = stretch.low if flat_from is None else flat_from
            continue
        if last_sign and stretch.sign != last_sign:
            x = stretch.low if flat_from is None else flat_from
            turns.append(
                Extremum(
                    "minimum" if stretch.sign > 0 else "maximum",
                    number(x),
                    number(curve.at(x)),
                    None if flat_from is None else number(stretch.low),
                )
            )
        last_sign, flat_from = stretch.sign, None
    return turns


def _inflections(curve: Curve, bends: list[Stretch]) -> list[Inflection]:
    """Sign changes between intervals of nonzero length; at kinks the sign is that of the jump."""
    inflections, last_sign = [], 0
    for stretch in bends:
        if not stretch.sign:
            continue
        if last_sign and stretch.sign != last_sign:
            x = stretch.low
            joint = next((i for i, place in enumerate(curve.joints) if place == x), None)
            kink = joint is not None and curve.jump(joint, 1)
            slope = None if kink else number(curve.at(x, 1))
            inflections.append(
                Inflection(
                    number(x), number(curve.at(x)), slope, stretch.sign > 0, joint is not None
                )
            )
        last_sign = stretch.sign
    return inflections


def _end(curve: Curve, side: int) -> End:
    piece = curve.pieces[0 if side < 0 else -1]
    limit, slope = piece.end(side, 0), piece.end(side, 1)
    intercept = None
    if mpmath.isfinite(limit):
        intercept, slope = limit, mpf(0)
    elif isinstance(piece, Piece) and mpmath.isfinite(slope):
        exact = _rational(slope)
        if exact is not None:
            remainder = Piece(piece.low, piece.high, piece.forms[0] - exact * X)
            intercept = remainder.end(side, 0)
    return End(
        "−∞" if side < 0 else "+∞",
        number(limit),
        number(slope),
        None if intercept is None or mpmath.isinf(intercept) else number(intercept),
    )


def _rational(value: mpf) -> sympy.Rational | None:
    """The limit as a short fraction, if it is one."""
    with mpmath.workdps(WORKING):
        exact = sympy.Rational(str(value)).limit_denominator(10**12)
        return exact if abs(value - mpf(exact.p) / exact.q) < mpf(10) ** -(DIGITS - 2) else None


def _joint(curve: Curve, joint: int) -> Joint:
    for order in range(4):
        jump = curve.jump(joint, order)
        if jump:
            return Joint(number(curve.joints[joint]), order - 1, order, number(jump))
    return Joint(number(curve.joints[joint]), 3, None, Decimal(0))


def _lipschitz(curve: Curve, order: int) -> Lipschitz:
    extremes = curve.extremes(order + 1)
    steepest = max(magnitude(value) for _, value, _ in extremes)
    places = {number(x) for x, value, _ in extremes if _same(magnitude(value), steepest)}
    finite = {x for x in places if x.is_finite()}
    constant = next(
        (
            (number(piece.low), number(piece.high))
            for piece in curve.pieces
            if piece.is_zero(order + 2) and _same(magnitude(piece.end(1, order + 1)), steepest)
        ),
        None,
    )
    jumps = any(
        curve.jump(joint, k) for joint in range(len(curve.joints)) for k in range(order + 1)
    )
    return Lipschitz(
        Decimal("Infinity") if jumps else number(steepest),
        number(steepest),
        tuple(sorted(finite or places)),
        constant,
    )


def _gaussian(curve: Curve) -> Gaussian:
    def value(piece: Smooth, z: mpf) -> mpf:
        return piece.quick(z)

    def square(piece: Smooth, z: mpf) -> mpf:
        return piece.quick(z) ** 2

    def slope_square(piece: Smooth, z: mpf) -> mpf:
        return piece.quick(z, 1) ** 2

    moments = map(curve.expectation, (value, square, slope_square))
    # Values that cancel to less than this are 0.
    mean, second, slopes = (m if abs(m) > mpf(10) ** -DIGITS else mpf(0) for m in moments)
    with mpmath.workdps(WORKING):
        gains = [1 / mpmath.sqrt(m) if m else mpmath.inf for m in (second, slopes)]
    return Gaussian(*map(number, (mean, second, slopes, *gains)))


def _monotone(falls: list[Stretch]) -> str | None:
    signs = {stretch.sign for stretch in falls} - {0}
    if not signs:
        return "constant"
    return {1: "rising", -1: "falling"}[signs.pop()] if len(signs) == 1 else None


def _turns_once(stretches: list[Stretch], first: int) -> bool:
    """Whether the sign is `first` up to some point, and the opposite from there on."""
    signs = [stretch.sign for stretch in stretches if stretch.sign]
    turned = [sign != first for sign in signs]
    return turned == sorted(turned)


def _shape(falls: list[Stretch], bends: list[Stretch]) -> Shape:
    smooth = [stretch for stretch in falls if stretch.low < stretch.high]
    continuous = len(smooth) == len(falls)
    signs = {stretch.sign for stretch in bends} - {0}
    monotone = _monotone(falls)
    otherwise = _monotone(smooth)
    return Shape(
        monotone=monotone,
        convex=continuous and -1 not in signs,
        concave=continuous and 1 not in signs,
        quasiconvex=_turns_once(falls, -1),
        quasiconcave=_turns_once(falls, 1),
        but_for_jumps=otherwise if otherwise != monotone else None,
    )


__all__ = ["Analysis", "LabError", "analyze", "analyze_named", "show"]
