"""The functions in mpmath, as their papers define them: nothing here is shared with the library."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
from mpmath import mpf

DIGITS = 50
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


FUNCTIONS: dict[str, Callable[..., mpf]] = {
    function.__name__: function
    for function in (relu, softplus, silu, gelu, gelu_tanh, mish, h_mish)
}


def f(name: str, x: float) -> mpf:
    """f(x) to 50 digits, with the default parameters."""
    with mpmath.workdps(DIGITS):
        return FUNCTIONS[name](mpf(x))


def df(name: str, x: float, order: int = 1) -> mpf:
    """f' (or a higher derivative) at x by differences, to 30 digits at least; not at a kink."""
    with mpmath.workdps(3 * DIGITS):
        return mpmath.diff(FUNCTIONS[name], mpf(x), order)
