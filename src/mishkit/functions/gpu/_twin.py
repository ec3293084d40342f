"""What a file in this folder defines: the formulas of one activation in Triton."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Formula = Any
"""A function marked with `triton.jit`."""


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
    """An activation's formulas in Triton.

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
