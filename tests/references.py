"""The functions in mpmath, as their papers define them: of the library, their expressions alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import mpmath
import sympy
from mpmath import mpf
from sympy.parsing.sympy_parser import parse_expr

from mishkit.functions import ACTIVATIONS

DIGITS = 50
GUARD, TAIL = 30, 350
"""Digits more, which 1 + tanh and the like may cancel; and those where they cancel more."""


def _erf(x: mpf) -> mpf:
    """mpmath's; far to the left its series would need thousands of digits, and erfc's does not."""
    return mpmath.erf(x) if x > -2 else mpmath.erfc(-x) - 1


@functools.cache
def function(name: str) -> Callable[..., mpf]:
    """f(x, *parameters) to 50 digits, from the expression that its source gives."""
    a = ACTIVATIONS[name]
    symbols = {n: sympy.Symbol(n, real=True) for n in ("x", *(p.name for p in a.parameters))}
    expression = parse_expr(a.expression, local_dict=symbols)
    modules = [{"erf": _erf}, "mpmath"]
    exact = sympy.lambdify(list(symbols.values()), expression, modules=modules)

    def f(x: mpf, *parameters: float) -> mpf:
        given = [mpf(value) for value in (x, *(parameters or a.defaults))]
        with mpmath.extradps(GUARD):
            y = exact(*given)
            if abs(y) > mpf(10) ** -GUARD * (1 + abs(given[0])):
                return y
        with mpmath.extradps(TAIL):
            return exact(*given)

    return f


@functools.cache
def f(name: str, x: float, *parameters: float) -> mpf:
    """f(x) to 50 digits, with the default parameters unless others are given."""
    with mpmath.workdps(DIGITS):
        return function(name)(mpf(x), *parameters)


@functools.cache
def df(name: str, x: float, *parameters: float, order: int = 1) -> mpf:
    """f' (or a higher derivative) at x by differences, to 30 digits at least; not at a joint."""
    with mpmath.workdps(3 * DIGITS):
        return mpmath.diff(lambda x: function(name)(x, *parameters), mpf(x), order)


def dp(name: str, x: float, index: int, *parameters: float) -> mpf:
    """The derivative of f(x) towards one parameter by differences, to 30 digits at least."""

    def of_parameter(p: mpf) -> mpf:
        return function(name)(mpf(x), *parameters[:index], p, *parameters[index + 1 :])

    with mpmath.workdps(3 * DIGITS):
        return mpmath.diff(of_parameter, mpf(parameters[index]))


@functools.cache
def limit(name: str, side: int, *parameters: float) -> float:
    """f(±∞); a zero has the sign of the first value that is not 0 on the way back."""
    ends = [f(name, side * 10.0**e, *parameters) for e in (100, 2, 1, 0)]
    if abs(ends[0]) > 1e90:
        return float(mpmath.sign(ends[0])) * float("inf")
    sign = next((mpmath.sign(end) for end in ends if end), 1)
    return math.copysign(float(ends[0]), sign)
