"""A table for f' from the output y and the side of the minimum, as `tools/fit_df_y.py` makes it."""

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

    All numbers are float32 values and the formula is meant for float32 arithmetic. It gives
    exactly 0 at y = 0 on the left and exactly 1 from y_max on, and NaN for NaN.
    """

    y_min_hi: float
    y_min_lo: float
    """−y_min, and a shift that centres the gradients sharing one y, in two parts: y + y_min_hi is
    exact beside the minimum. The second is 0 for the 16-bit types."""
    least: float
    """What y − y_min counts as at the minimum itself."""
    y_tail: float
    """Left of the minimum and above this y the variable is −√(−y)."""
    y_max: float
    """From here on f' is its limit, 1."""
    breaks: tuple[float, float]
    """Where, right of the minimum, one polynomial gives way to the next."""
    centers: Four
    coefficients: tuple[Four, ...]
    """A row a degree, from 0 up."""
    end: float = field(init=False)
    """What y_max comes to above the minimum."""

    def __post_init__(self) -> None:
        # Not at each call: torch.compile would take the sum for one of symbols.
        end = leading(leading(self.y_max + self.y_min_hi, 24) + self.y_min_lo, 24)
        object.__setattr__(self, "end", end)


@dataclass(frozen=True)
class Minimum:
    """Where f has its minimum, as the parabola y + (bend·(x − turn))² that it is there."""

    turn: float
    y: float
    bend: float
    reach: float = field(default=math.nan)
    """How far above y float32 can't tell f from the parabola."""

    def __post_init__(self) -> None:
        if math.isnan(self.reach):
            object.__setattr__(self, "reach", -self.y * 2.0**-18)


def centring(depth: float, precision: int) -> tuple[float, float]:
    """What centres the gradients that share one output rounded to so many bits, beside a minimum of
    −depth: a shift of y − y_min, and what that is raised to at least.

    Where f is a parabola the gradient is a root of y − y_min, and the middle of those between the
    roots of a − h and a + h is the root of (a + √(a² − h²))/2, or of a quarter of the most in the
    lowest interval, which begins with 0.
    """
    if depth == 0:  # beside which no digit of y is lost
        return 0.0, 0.0
    unit = math.ldexp(1.0, math.frexp(depth)[1] - precision)
    rounded = round(depth / unit) * unit
    # Towards 0 a power of two has its neighbour at half the distance.
    if math.frexp(rounded)[0] == 0.5:
        unit /= 2
    lowest = depth - rounded
    following = lowest + unit
    least = (lowest + unit / 2) / 4
    shift = (math.sqrt(following * following - unit * unit / 4) - following) / 2
    return min(shift, least - lowest), least


def leading(value: float, bits: int) -> float:
    """A number rounded to so many bits."""
    # Veltkamp's way: arithmetic alone, which torch.compile can follow.
    shifted = value * (2.0 ** (53 - bits) + 1)
    return shifted - (shifted - value)
