"""A table for f' from the output y and the side of the minimum, as `tools/fit_df_y.py` makes it."""

from __future__ import annotations

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
    """−y_min in two parts: y + y_min_hi is exact beside the minimum. 0 for the 16-bit types, whose
    y_min_hi also holds a shift that centres the gradients sharing one y."""
    least: float
    """What y − y_min counts as at the minimum itself; 0 in float32."""
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


def leading(value: float, bits: int) -> float:
    """A number rounded to so many bits."""
    # Veltkamp's way: arithmetic alone, which torch.compile can follow.
    shifted = value * (2.0 ** (53 - bits) + 1)
    return shifted - (shifted - value)
