"""Where an input is far enough out that a function equals its limit in every dtype."""

SMALLEST, LARGEST = 1e-15, 1e10
"""The sizes of parameters for which nothing in float32 overflows or is lost on the way: 2·LARGEST²
times exp(40), the most that a formula multiplies it by, is a float32, and LARGEST/SMALLEST too."""
FAR = 1000.0
"""exp(−FAR) is 0 in float64. Clamping to ±FAR turns inf·0 into the limit and changes no digit."""
