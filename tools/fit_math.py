"""Fit the polynomials of the exponential, log1p and the tail of the normal law.

    python tools/fit_math.py           write csrc/math_tables.h, for csrc/math.h, and
                                       src/mishkit/functions/gpu/_tables.py
    python tools/fit_math.py --check   fail if a file is not what would be written

Each is a minimax fit of relative error by Lawson's iteration (least squares whose weights grow
where the error is large), on Chebyshev nodes, with values from mpmath at 40 digits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import _same_blas  # noqa: F401  (before numpy)
import mpmath as mp
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "csrc" / "math_tables.h"
TRITON_TARGET = ROOT / "src" / "mishkit" / "functions" / "gpu" / "_tables.py"
NODES = 400
mp.mp.dps = 40


@dataclass(frozen=True)
class Fit:
    """g(t) ≈ Σ cₖ·tᵏ on [low, high], with the error of cost(t)·g weighed as relative to `scale`."""

    name: str
    meaning: str
    g: Callable[[mp.mpf], mp.mpf]
    weight: Callable[[mp.mpf], mp.mpf]
    low: float
    high: float
    degree: int


def mills(t: mp.mpf) -> mp.mpf:
    """Φ(−t)·exp(t²/2)."""
    return mp.erfc(t / mp.sqrt(2)) / 2 * mp.exp(t * t / 2)


NORMAL_SCALE = 0.31
"""z = 1/(1 + NORMAL_SCALE·t) maps the tail's t ∈ [0, 14] to a short interval."""
NORMAL_SLOPE = float(np.float32(mp.sqrt(2 * mp.pi)))
"""z = 1/(8 + NORMAL_SLOPE·t) does too, and is the first term of the tail for large t."""


def with_half(fit: Fit, degree: int, slope: int | None = None) -> list[Fit]:
    """A fit for float32, and the same of lower degrees for slopes and for 16-bit results."""
    lower = {"slope": ("slopes", slope), "half": ("16-bit results", degree)}
    return [fit] + [
        replace(fit, name=f"{fit.name}_{ending}", meaning=f"the same, for {use}", degree=degree)
        for ending, (use, degree) in lower.items()
        if degree is not None
    ]


FITS = [
    *with_half(
        Fit(
            "exp_remainder",
            "(exp(r) − 1 − r)/r² for |r| ≤ ln 2/16",
            lambda r: (mp.expm1(r) - r) / r**2 if r else mp.mpf(1) / 2,
            lambda r: abs(r) ** 2 + mp.mpf("1e-12"),
            -0.0435,
            0.0435,
            2,
        ),
        degree=0,
        slope=1,
    ),
    *with_half(
        Fit(
            "log1p_ratio",
            "ln(1 + a)/a for 0 ≤ a ≤ 1",
            lambda a: mp.log1p(a) / a if a else mp.mpf(1),
            lambda a: a / mp.log1p(a) if a else mp.mpf(1),
            0.0,
            1.0,
            9,
        ),
        degree=5,
    ),
    Fit(
        "normal_tail",
        "(Φ(−t)·exp(t²/2) − z)/z² of z = 1/(8 + normal_slope·t), 0 ≤ t ≤ 14",
        lambda z: (mills((1 / z - 8) / NORMAL_SLOPE) - z) / z**2,
        lambda z: z**2 / mills((1 / z - 8) / NORMAL_SLOPE),
        1 / (8 + NORMAL_SLOPE * 14),
        1 / 8,
        8,
    ),
    Fit(
        "normal_tail_half",
        f"Φ(−t)·exp(t²/2)/z of z = 1/(1 + {NORMAL_SCALE}·t), 0 ≤ t ≤ 14, for 16-bit results",
        lambda z: mills((1 / z - 1) / NORMAL_SCALE) / z,
        lambda z: z / mills((1 / z - 1) / NORMAL_SCALE),
        1 / (1 + NORMAL_SCALE * 14),
        1.0,
        5,
    ),
]


def fit(f: Fit, nodes: int = NODES) -> tuple[list[float], float]:
    """Coefficients from degree 0 up, rounded to float32, and the largest weighted error."""
    degree = f.degree
    k = np.arange(nodes)
    unit = np.cos(np.pi * (2 * k + 1) / (2 * nodes))
    t = (f.low + f.high) / 2 + (f.high - f.low) / 2 * unit
    g = np.array([float(f.g(mp.mpf(float(v)))) for v in t])
    weight = np.array([float(f.weight(mp.mpf(float(v)))) for v in t])
    # Rounding one coefficient is made good by those below it, so each is fixed in turn, from the
    # highest degree down, and the rest fitted again.
    rounded: list[float] = []
    for k in range(degree, -1, -1):
        residual = g - sum(c * t ** (degree - i) for i, c in enumerate(rounded))
        p = minimax(t, residual, weight, k, f.low, f.high)
        rounded.append(float(np.float32(p[k])))
    rounded.reverse()
    return rounded, float(np.max(np.abs(np.polynomial.polynomial.polyval(t, rounded) - g) * weight))


def minimax(
    t: np.ndarray, g: np.ndarray, weight: np.ndarray, degree: int, low: float, high: float
) -> np.ndarray:
    """Power-basis coefficients of the polynomial of least greatest weighted error at the nodes."""
    unit = (2 * t - low - high) / (high - low)
    basis = np.polynomial.chebyshev.chebvander(unit, degree)
    lawson = np.full(len(t), 1 / len(t))
    best, best_error = np.zeros(degree + 1), np.inf
    for _ in range(100):
        root = np.sqrt(lawson) * weight
        c, *_ = np.linalg.lstsq(basis * root[:, None], g * root, rcond=None)
        error = np.abs(basis @ c - g) * weight
        if error.max() < best_error:
            best, best_error = c, error.max()
        lawson *= error + error.max() * 1e-6
        lawson /= lawson.sum()
    p = Chebyshev(best, domain=[low, high]).convert(kind=Polynomial).coef
    return np.pad(p, (0, degree + 1 - len(p)))


MILLS_DEGREES = {"": (4, 5), "_half": (2, 3)}
"""Of the fraction that GPUs use for all t: there a division costs less than four products."""
MILLS_END = 14.5


def mills_fraction(
    over: int, under: int, nodes: int = NODES
) -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients of P and Q with mills(t) ≈ P(t)/Q(t), and the largest relative error."""
    k = np.arange(nodes)
    unit = (1 - np.cos(np.pi * (2 * k + 1) / (2 * nodes))) / 2
    t = 3 * unit * MILLS_END / (MILLS_END + 3 - unit * MILLS_END)  # denser where mills bends
    g = np.array([float(mills(mp.mpf(float(v)))) for v in t])
    # P − g·Q is linear in the coefficients, and relative to g·Q once Q is nearly known.
    z = t / MILLS_END
    basis = np.hstack([np.vander(z, over + 1, True), -g[:, None] * np.vander(z, under + 1, True)])
    lawson, below = np.full(nodes, 1 / nodes), np.ones(nodes)
    best, best_error = (np.zeros(0), np.zeros(0)), np.inf
    for _ in range(200):
        root = np.sqrt(lawson) / (g * below)
        # The constant of Q is 1.
        others = np.delete(basis, over + 1, axis=1)
        c, *_ = np.linalg.lstsq(others * root[:, None], g * root, rcond=None)
        p, q = c[: over + 1], np.concatenate([[1.0], c[over + 1 :]])
        below = np.polynomial.polynomial.polyval(z, q)
        p, q = (
            (a / MILLS_END ** np.arange(len(a))).astype(np.float32).astype(np.float64)
            for a in (p, q)
        )
        values = np.polynomial.polynomial.polyval(t, p) / np.polynomial.polynomial.polyval(t, q)
        error = np.abs(values / g - 1)
        if error.max() < best_error:
            best, best_error = (p, q), error.max()
        lawson *= error + error.max() * 1e-3
        lawson /= lawson.sum()
    return *best, float(best_error)


def split(name: str, value: mp.mpf, bits: int) -> list[str]:
    """C++ constants: the first `bits` bits of the value, and the rest."""
    exponent = int(mp.floor(mp.log(value, 2)))
    high = mp.floor(mp.ldexp(value, bits - 1 - exponent)) * mp.mpf(2) ** (exponent + 1 - bits)
    return [
        f"constexpr double {name.format('_high')} = {float(high).hex()};",
        f"constexpr double {name.format('_low')} = {float(value - high).hex()};",
    ]


def eighths() -> np.ndarray:
    """Powers of two in steps of an eighth."""
    return np.array([float(mp.mpf(2) ** (mp.mpf(j) / 8)) for j in range(8)], np.float32)


def less_index(powers: np.ndarray) -> np.ndarray:
    """The powers, less the bits that adding a shifted index puts back."""
    return (powers.view(np.uint32) - (np.arange(8, dtype=np.uint32) << 20)).view(np.float32)


def rounding_of(powers: np.ndarray) -> np.ndarray:
    """Logarithms of the ratios of the true powers to the rounded ones."""
    exact = [mp.mpf(2) ** (mp.mpf(j) / 8) for j in range(8)]
    return np.array(
        [float(mp.log(e / mp.mpf(float(p)))) for e, p in zip(exact, powers, strict=True)],
        np.float32,
    )


def table(name: str, values: np.ndarray) -> list[str]:
    return [
        f"alignas(32) constexpr float {name}[8] = {{",
        *(f"    {float(value).hex()}f," for value in values),
        "};",
    ]


PIECES = 32
NORMAL_PIECES_DEGREE = 4


def normal_pieces() -> tuple[np.ndarray, float]:
    """Φ(−t)·exp(t²/2) by pieces of u = 1 + t ∈ [1, 16), eight to an octave, and the largest error.

    A row a degree, a column a piece: the column is bits 20 to 24 of u's float32, the variable is
    the distance of u from the middle of the piece.
    """
    per_octave = PIECES // 4
    half = 1 / (2 * per_octave)
    columns, errors = {}, []
    for octave in range(4):
        for i in range(per_octave):

            def g(w: mp.mpf, octave: int = octave, i: int = i) -> mp.mpf:
                return mills(mp.ldexp(1 + mp.mpf(2 * i + 1) / (2 * per_octave) + w, octave) - 1)

            piece = Fit("", "", g, lambda w, g=g: 1 / g(w), -half, half, NORMAL_PIECES_DEGREE)
            column = ((127 + octave) % 4) * per_octave + i
            coefficients, error = fit(piece, nodes=80)
            columns[column] = [c / 2.0 ** (octave * k) for k, c in enumerate(coefficients)]
            errors.append(error)
    return np.array([columns[i] for i in range(PIECES)], np.float32).T, max(errors)


def render() -> str:
    lines = [
        "// Generated by tools/fit_math.py: do not edit.",
        "#pragma once",
        "",
        "namespace mishkit {",
        "",
        f"constexpr double normal_scale = {NORMAL_SCALE};",
        f"constexpr double normal_slope = {NORMAL_SLOPE.hex()};",
        "",
        "// ln 2 in two parts, the first of so few bits that its product with an exponent (in",
        "// eighths for float32) is exact.",
        *split("ln2{}", mp.log(2), 12),
        *split("ln2{}_double", mp.log(2), 40),
        "",
        "// 2^(j/8), and bits(2^(j/8)) − (j << 20): adding k << 20 for k = 8·exponent + j to the",
        "// latter leaves 2^(k/8).",
        *table("powers_of_two", eighths()),
        *table("powers_of_two_for_addition", less_index(eighths())),
        "",
        "// What the rounding of the powers took: ln(2^(j/8)/rounded).",
        *table("eighths_rest", rounding_of(eighths())),
    ]
    for f in FITS:
        coefficients, error = fit(f)
        lines += [
            "",
            f"// {f.meaning}: error {error:.1e}; from degree 0 up.",
            f"constexpr float {f.name}[] = {{",
            *(f"    {c.hex()}f," for c in coefficients),
            "};",
        ]
    pieces, error = normal_pieces()
    lines += [
        "",
        "// Φ(−t)·exp(t²/2) by pieces of u = 1 + t: bits 20 to 24 of u name the column, a row is a",
        f"// degree of u less the middle of its piece: error {error:.1e}.",
        f"alignas(64) constexpr float normal_pieces[{len(pieces)}][{PIECES}] = {{",
    ]
    for row in pieces:
        lines += ["    {", *(f"        {float(value).hex()}f," for value in row), "    },"]
    lines += ["};"]
    return "\n".join([*lines, "", "}  // namespace mishkit", ""])


def render_triton() -> str:
    def row(name: str, meaning: str, coefficients: Sequence[float]) -> list[str]:
        numbers = [f"        {float(c)!r}," for c in coefficients]
        head, tail = [f"{name} = constant(", "    ("], ["    )", ")"]
        return [*head, *numbers, *tail, f'"""{meaning}; from degree 0 up."""']

    lines = ['"""Generated by tools/fit_math.py: do not edit."""', ""]
    lines += ["from ._constants import constant", ""]
    for f in FITS:
        if f.name.startswith("log1p"):
            coefficients, error = fit(f)
            meaning = f.meaning
            if f.name.endswith("_half"):
                meaning = next(g.meaning for g in FITS if g.name + "_half" == f.name)
            lines += row(f.name.upper(), f"{meaning}: error {error:.1e}", coefficients)
    for ending, degrees in MILLS_DEGREES.items():
        p, q, error = mills_fraction(*degrees)
        meaning = f"Φ(−t)·exp(t²/2) for 0 ≤ t ≤ {MILLS_END:g}, as a fraction: error {error:.1e}"
        lines += row(f"MILLS_OVER{ending.upper()}", meaning, p)
        lines += row(f"MILLS_UNDER{ending.upper()}", "what it is divided by", q)
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check, wrong = parser.parse_args().check, 0
    for target, text in ((TARGET, render()), (TRITON_TARGET, render_triton())):
        if not check:
            target.write_text(text)
        elif target.read_text() != text:
            print(f"{target} is not what tools/fit_math.py makes")
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main())
