"""The functions in mpmath, as their papers define them: nothing here is shared with the library."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import mpmath
from mpmath import mpf

DIGITS = 50
TAIL_DIGITS = 350
"""More, where 1 + tanh cancels."""
Real = mpf | float


def relu(x: Real) -> mpf:
    return mpf(max(x, 0))


def softplus(x: Real, beta: float = 1, threshold: float = 20) -> mpf:
    return mpf(x) if beta * x > threshold else mpmath.log1p(mpmath.exp(beta * x)) / beta


def silu(x: Real) -> mpf:
    return x / (1 + mpmath.exp(-x))


def gelu(x: Real) -> mpf:
    return x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2


def gelu_tanh(x: Real) -> mpf:
    # (1 + tanh u)/2 = 1/(1 + exp(−2u)): 50 digits are not enough for 1 + tanh in the far tail.
    u = mpmath.sqrt(2 / mpmath.pi) * (x + mpf("0.044715") * mpf(x) ** 3)
    return x / (1 + mpmath.exp(-2 * u))


def mish(x: Real) -> mpf:
    return x * mpmath.tanh(mpmath.log1p(mpmath.exp(x)))


def h_mish(x: Real) -> mpf:
    return mpf(x) / 2 * min(2, max(0, mpf(x) + 2))


def hard_mish(x: Real, k: float = 5) -> mpf:
    return mpf(x) * min(k, max(0, mpf(x) + 3)) / k


def hardswish(x: Real) -> mpf:
    return mpf(x) * min(6, max(0, mpf(x) + 3)) / 6


def swish(x: Real, beta: float = 1) -> mpf:
    return x / (1 + mpmath.exp(-beta * x))


def piecewise_swish(x: Real) -> mpf:
    return swish(x, 1 if x <= 0 else 2)


def linear_swish(x: Real) -> mpf:
    return 2 * swish(x, 1.25) if x <= 0 else mpf(x)


def aptx(x: Real, alpha: float = 1, beta: float = 1, gamma: float = 0.5) -> mpf:
    with mpmath.extradps(TAIL_DIGITS):
        return (alpha + mpmath.tanh(beta * x)) * gamma * x


FUNCTIONS: dict[str, Callable[..., mpf]] = {
    function.__name__: function
    for function in (
        relu,
        softplus,
        silu,
        gelu,
        gelu_tanh,
        mish,
        h_mish,
        hard_mish,
        hardswish,
        swish,
        piecewise_swish,
        linear_swish,
        aptx,
    )
}


def f(name: str, x: float, *parameters: float) -> mpf:
    """f(x) to 50 digits, with the default parameters unless others are given."""
    with mpmath.workdps(DIGITS):
        return FUNCTIONS[name](mpf(x), *parameters)


def df(name: str, x: float, *parameters: float, order: int = 1) -> mpf:
    """f' (or a higher derivative) at x by differences, to 30 digits at least; not at a joint."""
    with mpmath.workdps(3 * DIGITS):
        return mpmath.diff(lambda x: FUNCTIONS[name](x, *parameters), mpf(x), order)


def dp(name: str, x: float, index: int, *parameters: float) -> mpf:
    """The derivative of f(x) towards one parameter by differences, to 30 digits at least."""

    def of_parameter(p: mpf) -> mpf:
        return FUNCTIONS[name](mpf(x), *parameters[:index], p, *parameters[index + 1 :])

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
