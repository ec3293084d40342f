"""The table for f' from the output y and the side of the minimum, made by `tools/fit_df_y.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Four = tuple[float, float, float, float]


@dataclass(frozen=True)
class BranchFit:
    """Four polynomials for f' in the signed root t, for y rounded to one dtype.

        tail  = left and y > y_tail
        root  = √(|y| if tail else max(least, (min(y, y_max) + y_min_hi) + y_min_lo))
        t     = −root if left else root
        piece = 0 if tail else 1 if left else 1 + (y > breaks[0]) + (y > breaks[1])
        f'    = Σ coefficients[k][piece]·(t − centers[piece])ᵏ

    All numbers are float32 values and the formula is meant for float32 arithmetic. It gives exactly
    0 at y = 0 on the left, exactly 1 from y_max on, and NaN for NaN.
    """

    y_min_hi: float
    y_min_lo: float
    """−y_min plus a shift that centres the gradients sharing one y, in two parts: y + y_min_hi is
    exact near the minimum. The second part is 0 for the 16-bit types.
    """
    least: float
    """If y − y_min is below this, y counts as the minimum itself."""
    y_tail: float
    """Left of the minimum and above this y, the variable is −√(−y)."""
    y_max: float
    """From here on f' is 1, its limit."""
    breaks: tuple[float, float]
    """Where, right of the minimum, one polynomial takes over from the next."""
    centers: Four
    coefficients: tuple[Four, ...]
    """One row per degree, starting at 0."""
    end: float = field(init=False)
    """How far y_max is above the minimum."""

    def __post_init__(self) -> None:
        # Not computed at each call: torch.compile would treat the sum as symbolic.
        end = leading(leading(self.y_max + self.y_min_hi, 24) + self.y_min_lo, 24)
        object.__setattr__(self, "end", end)


@dataclass(frozen=True)
class Minimum:
    """The minimum of f, as the parabola y + (bend·(x − turn))² that approximates f there."""

    turn: float
    y: float
    bend: float
    reach: float = field(default=math.nan)
    """How far above y float32 can't distinguish f from the parabola."""

    def __post_init__(self) -> None:
        if math.isnan(self.reach):
            object.__setattr__(self, "reach", -self.y * 2.0**-18)


def centring(depth: float, precision: int) -> tuple[float, float]:
    """How to centre the gradients that share one output rounded to `precision` bits, near a minimum
    of −depth: a shift of y − y_min, and the lower bound that the sum is raised to.

    Where f is a parabola, the gradient is the root of y − y_min. The gradients sharing an output
    lie between the roots of a − h and a + h, and their midpoint is the root of (a + √(a² − h²))/2.
    In the lowest interval, which begins with 0, it is the root of a quarter of the upper end.
    """
    if depth == 0:  # near 0 no digit of y is lost
        return 0.0, 0.0
    unit = math.ldexp(1.0, math.frexp(depth)[1] - precision)
    rounded = round(depth / unit) * unit
    # Below a power of two the spacing of numbers is halved.
    if math.frexp(rounded)[0] == 0.5:
        unit /= 2
    lowest = depth - rounded
    following = lowest + unit
    least = (lowest + unit / 2) / 4
    shift = (math.sqrt(following * following - unit * unit / 4) - following) / 2
    return min(shift, least - lowest), least


def leading(value: float, bits: int) -> float:
    """A number rounded to `bits` bits."""
    # Veltkamp's splitting: it uses only arithmetic, which torch.compile can trace.
    shifted = value * (2.0 ** (53 - bits) + 1)
    return shifted - (shifted - value)
