"""How far out an input must be for a function to equal its limit in every dtype."""

SMALLEST, LARGEST = 1e-15, 1e10
"""Parameter magnitudes for which no float32 computation overflows or loses its value on the way:
2·LARGEST² times exp(40), the largest factor in any formula, fits a float32, and so does
LARGEST/SMALLEST.
"""
FAR = 1000.0
"""exp(−FAR) is 0 in float64. Clamping to ±FAR turns inf·0 into the limit and changes no digit."""
