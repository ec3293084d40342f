"""Global constants of functions in Triton, for its compiler and for its interpreter."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

_interpreted = bool(triton.knobs.runtime.interpret)


def constant(value: Any) -> Any:
    """A number, or a tuple of numbers, that functions in Triton can read as a global."""
    # The interpreter has no constants; it computes with plain numbers.
    return value if _interpreted else tl.constexpr(value)


def value_of(number: Any) -> Any:
    """The plain value of such a constant, for code on the host."""
    return number.value if isinstance(number, tl.constexpr) else number


INTERPRETED = constant(_interpreted)
"""Whether Triton's interpreter runs the functions."""
