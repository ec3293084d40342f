"""The formulas in Triton, for GPUs: written next to the others, and compiled when needed.

Triton is slow to import and not installed everywhere. So functions marked with `device` are
ordinary Python functions that nobody calls, until `compiled` passes their source to Triton.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch

Formula = Callable[..., Any]

_devices: list[FunctionType] = []


def device(function: Formula) -> Formula:
    """Mark a function as written in Triton's language.

    The function can use `tl` (triton.language), `libdevice` and `interpreted` (whether Triton's
    interpreter runs it). From its own module it can use other such functions, and values made only
    of numbers, as constants. Parameters annotated `constexpr` are known at compile time.
    """
    assert isinstance(function, FunctionType)
    _devices.append(function)
    return function


@functools.cache
def compiled() -> dict[Formula, Any]:
    """The Triton version of each of these functions."""
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice

    interpreted = bool(triton.knobs.runtime.interpret)
    # The interpreter has no constants; it computes with plain numbers.
    constant = (lambda value: value) if interpreted else tl.constexpr
    triton_itself = {
        "tl": tl,
        "libdevice": libdevice,
        "interpreted": constant(interpreted),
        # The compiler looks up annotations, but does nothing else with them.
        "constexpr": tl.constexpr,
        "Any": constant(None),
    }
    # The functions of each module get a separate namespace with the compiled functions and
    # constants, so the module itself is unchanged.
    spaces: dict[str, dict[str, Any]] = {}
    made: dict[Formula, Any] = {}
    for function in _devices:
        space = spaces.setdefault(function.__module__, {})
        twin = FunctionType(function.__code__, space, function.__name__, function.__defaults__)
        twin.__annotations__ = function.__annotations__
        twin.__module__, twin.__doc__ = function.__module__, function.__doc__
        made[function] = triton.jit(twin)
    for function in _devices:
        space = spaces[function.__module__]
        if space:
            continue
        for name, value in function.__globals__.items():
            if isinstance(value, FunctionType) and value in made:
                space[name] = made[value]
            elif _is_numeric(value):
                space[name] = constant(value)
        space.update(triton_itself, __name__=function.__module__)
    return made


def _is_numeric(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_numeric, value))
    return type(value) in (int, float)


def no_numbers(*_: float) -> tuple[float, ...]:
    """The constants of a function without parameters."""
    return ()


def no_output_numbers(saved: torch.dtype, *_: float) -> tuple[float, ...]:
    """The constants of the derivative from the output, if it needs none."""
    return ()


def no_table(saved: torch.dtype, *_: float) -> tuple[float, ...] | None:
    """The table of the derivative from the output, if that has a closed form."""
    return None


def never(*_: float) -> bool:
    """No parameters need a variant."""
    return False


@dataclass(frozen=True)
class Twin:
    """An activation's formulas in Triton: functions marked with `device`.

    They take float32 blocks; `c`, a tuple of float32 numbers computed from the parameters on the
    host; and `half`, which is whether the result is rounded to 16 bits, so that a relative error of
    2⁻¹⁷ is good enough. No finite x gives a NaN, ±inf gives the limit, and NaN gives NaN.
    """

    f: Formula
    """f(x, c, half)"""
    df: Formula
    """f'(x): df(x, c, half)"""
    d2f: Formula
    """f''(x): d2f(x, c, half)"""
    df_y: Formula
    """f' from the output: df_y(y, right, c, table, half); monotone functions do not read `right`.
    """
    numbers: Callable[..., Sequence[float]] = no_numbers
    """The `c` of f, df and d2f, computed from the parameters."""
    output_numbers: Callable[..., Sequence[float]] = no_output_numbers
    """The `c` of df_y, computed from the dtype of y and the parameters."""
    table: Callable[..., tuple[float, ...] | None] = no_table
    """The constants that df_y reads, from the dtype of y and the parameters."""
    trained_numbers: Formula | None = None
    """The `c` of f, df and dp from blocks of parameters: trained_numbers(parameters)."""
    dp: Formula | None = None
    """The derivatives with respect to the parameters, as a tuple: dp(x, c, half)."""
    varies: Callable[..., bool] = never
    """Whether these parameters need the variant."""
    variant: Twin | None = None
    """Formulas that are right for all parameters but slower: used where `varies`, and in training.
    """

    def at(self, *parameters: float) -> Twin:
        """The formulas to use with these parameters."""
        return self.variant if self.variant and self.varies(*parameters) else self

    @property
    def of_trained(self) -> Twin:
        """The formulas to use with parameters whose values the host does not know."""
        return self.variant or self
