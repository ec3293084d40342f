"""Student's confidence interval for a mean."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # type: ignore[import-untyped]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """mean ± half, from n values; `half` is NaN for fewer than two."""

    mean: float
    half: float
    n: int


def interval(values: Iterable[float], confidence: float = CONFIDENCE) -> Interval:
    """Student's interval for the mean; NaN for no values."""
    array = np.array(list(values), dtype=np.float64)
    n = len(array)
    mean = float(array.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, n)
    quantile = float(stdtrit(n - 1, 0.5 + confidence / 2))
    return Interval(mean, quantile * float(array.std(ddof=1)) / math.sqrt(n), n)
