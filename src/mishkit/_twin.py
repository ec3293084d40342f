"""The same formulas in Triton, for GPUs: written beside the others, compiled when they are needed.

Triton takes long to import, and is not there on every machine. So what is marked with `device` is
an ordinary Python function, which nobody calls, until `compiled` gives Triton its source.
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
    """Mark a function in Triton's language.

    It sees `tl` (triton.language), `libdevice` and `interpreted` (whether Triton's interpreter
    runs it), and of its own module other such functions and what is made of numbers alone, as
    constants. Parameters annotated `constexpr` are known when it is compiled.
    """
    assert isinstance(function, FunctionType)
    _devices.append(function)
    return function


@functools.cache
def compiled() -> dict[Formula, Any]:
    """What Triton makes of each of these functions."""
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice

    interpreted = bool(triton.knobs.runtime.interpret)
    # The interpreter has no constants: it computes with numbers as they are.
    constant = (lambda value: value) if interpreted else tl.constexpr
    triton_itself = {
        "tl": tl,
        "libdevice": libdevice,
        "interpreted": constant(interpreted),
        # The compiler looks annotations up, and does no more with these.
        "constexpr": tl.constexpr,
        "Any": constant(None),
    }
    # Each module's functions get a namespace of their own: theirs are the compiled functions and
    # constants, and the module keeps its own.
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
    """The constants of a function that has no parameters."""
    return ()


def no_output_numbers(saved: torch.dtype, *_: float) -> tuple[float, ...]:
    """The constants of the derivative from the output, where it needs none."""
    return ()


def no_table(saved: torch.dtype, *_: float) -> tuple[float, ...] | None:
    """The table of the derivative from the output, where it has a closed form."""
    return None


def never(*_: float) -> bool:
    """No parameters ask for a variant."""
    return False


@dataclass(frozen=True)
class Twin:
    """An activation's formulas in Triton: functions marked with `device`.

    They take float32 blocks, `c`, a tuple of float32 numbers made of the parameters on the host,
    and `half`: whether the result is rounded to 16 bits, so that a relative error of 2⁻¹⁷ does.
    No finite x gives a NaN, ±inf gives the limit, NaN gives NaN.
    """

    f: Formula
    """f(x, c, half)"""
    df: Formula
    """f'(x): df(x, c, half)"""
    d2f: Formula
    """f''(x): d2f(x, c, half)"""
    df_y: Formula
    """f' from the output: df_y(y, right, c, table, half); `right` is not read by the monotone."""
    numbers: Callable[..., Sequence[float]] = no_numbers
    """The c of f, df and d2f, from the parameters."""
    output_numbers: Callable[..., Sequence[float]] = no_output_numbers
    """The c of df_y, from the dtype of y and the parameters."""
    table: Callable[..., tuple[float, ...] | None] = no_table
    """What df_y reads as constants, from the dtype of y and the parameters."""
    trained_numbers: Formula | None = None
    """The c of f, df and dp from parameters that are blocks: trained_numbers(parameters)."""
    dp: Formula | None = None
    """The derivatives towards the parameters, as a tuple: dp(x, c, half)."""
    varies: Callable[..., bool] = never
    """Whether these parameters ask for the variant."""
    variant: Twin | None = None
    """Formulas that are right for all parameters, but slower: for those, and for trained ones."""

    def at(self, *parameters: float) -> Twin:
        """What computes with these parameters."""
        return self.variant if self.variant and self.varies(*parameters) else self

    @property
    def of_trained(self) -> Twin:
        """What computes with parameters that the host does not know."""
        return self.variant or self
