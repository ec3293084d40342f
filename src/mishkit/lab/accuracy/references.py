"""What the kernels are compared with: f, f' and the inverse in float64.

These are an activation's own formulas in float64; the tests compare those with 50 digits of mpmath.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mishkit.activation import Activation

STEPS = 200
"""Bisection alone closes the widest bracket in about 70 steps."""
TOLERANCE = 1e-13
"""Relative to x."""
FARTHEST = 1000.0
"""Beyond this, every function of the table equals its asymptote in float64."""


@dataclass(frozen=True)
class Reference:
    """One activation with its parameters, on float64 tensors."""

    activation: Activation
    parameters: tuple[float, ...]

    def f(self, x: Tensor) -> Tensor:
        """f(x)."""
        return self.activation.f(x, *self.parameters)

    def df(self, x: Tensor) -> Tensor:
        """f'(x)."""
        return self.activation.df(x, *self.parameters)

    def d2f(self, x: Tensor) -> Tensor:
        """f''(x)."""
        return self.activation.d2f(x, *self.parameters)

    def df_of_output(self, y: Tensor, near: Tensor) -> Tensor:
        """f' at the x with f(x) = y, on the same side of the turn as `near`.

        `near` is the x that y was rounded from. If rounding took y below the minimum, x is the turn
        itself; if it took y to the limit of a branch that ends flat, x is infinite. f' is 0 at
        both. A monotone function must rise.
        """
        ends = torch.tensor([-math.inf, math.inf], dtype=torch.float64)
        limits, slopes = self.f(ends), self.df(ends)
        flat = slopes == 0
        # A slope that grows without end is at least 1 out there.
        slopes = slopes.clamp(-1, 1)
        lowest, highest = torch.full_like(y, -FARTHEST), torch.full_like(y, FARTHEST)
        if not flat[0]:
            lowest += (y / slopes[0]).clamp_max(0)
        if not flat[1]:
            highest += (y / slopes[1]).clamp_min(0)
        turn = self.activation.turn_at(*self.parameters)
        if turn is None:
            right, edge = torch.ones_like(y, dtype=torch.bool), lowest
            vanished = (flat[0] & (y <= limits[0])) | (flat[1] & (y >= limits[1]))
            under = torch.zeros_like(right)
        else:
            # Rounded, as kernels see it that compute in float32.
            right, edge = near > float(np.float32(turn)), torch.full_like(y, turn)
            vanished = flat[right.long()] & (y >= limits[right.long()])
            under = y <= self.f(edge)
        low, high = torch.where(right, edge, lowest), torch.where(right, highest, edge)
        gradient = torch.zeros_like(y)
        todo = ~(vanished | under)
        x = self._solve(y[todo], near[todo], low[todo], high[todo], right[todo])
        gradient[todo] = self.df(x)
        return gradient

    def _solve(self, y: Tensor, start: Tensor, low: Tensor, high: Tensor, rising: Tensor) -> Tensor:
        """Newton's method between brackets that close by bisection where a step leaves them."""
        solution = start.clone()
        open_ = torch.arange(y.numel())
        x = torch.minimum(torch.maximum(start, low), high)
        for _ in range(STEPS):
            excess = self.f(x) - y
            below = (excess < 0) == rising
            low, high = torch.where(below, x, low), torch.where(below, high, x)
            newton = x - excess / self.df(x)
            inside = (newton > low) & (newton < high) | (newton == x)
            after = torch.where(inside, newton, 0.5 * (low + high))
            solution[open_] = after
            going = (after - x).abs() > TOLERANCE * x.abs()
            count = int(going.sum())
            if not count:
                break
            x = after
            if 2 * count < len(x):  # picking the rest costs more than a step of all
                open_, x, y = open_[going], x[going], y[going]
                low, high, rising = low[going], high[going], rising[going]
        return solution
