"""The tables for f' from the output: evaluated here in plain float32, apart from what made them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from common import ROOT

from mishkit.functions import ACTIVATIONS
from mishkit.functions._branch_fit import BranchFit
from mishkit.functions._df_y_tables import MINIMA, TABLES
from mishkit.lab.accuracy.sampled import beside

NAMES = list(TABLES)
HALVES = ["bfloat16", "float16"]

FLOAT32_BAR = 2e-6
HALF_BAR = 1.05


def reference(name: str, which: str, x: np.ndarray) -> np.ndarray:
    return getattr(ACTIVATIONS[name], which)(torch.from_numpy(np.asarray(x, float))).numpy()


def evaluate(fit: BranchFit, y: np.ndarray, left: np.ndarray, fused: bool = True) -> np.ndarray:
    f32 = np.float32
    y = y.astype(f32)
    tail = left & (y > f32(fit.y_tail))
    above = (np.minimum(y, f32(fit.y_max)) + f32(fit.y_min_hi)) + f32(fit.y_min_lo)
    root = np.sqrt(np.where(tail, np.abs(y), np.maximum(f32(fit.least), above)))
    t = np.where(left, -root, root)
    rising = (y > f32(fit.breaks[0])).astype(int) + (y > f32(fit.breaks[1]))
    piece = np.where(tail, 0, np.where(left, 1, 1 + rising))
    w = t - f32(fit.centers)[piece]
    p = np.zeros_like(w)
    for row in reversed(fit.coefficients):
        # A product of two float32 is exact in float64, so this rounds once, as an FMA does.
        product = p.astype(float) * w if fused else p * w
        p = (product + f32(row)[piece]).astype(f32)
    return p.astype(float)


def gradient_of_output(name: str, y: np.ndarray, left: np.ndarray) -> np.ndarray:
    """f' at the x on the given side with f(x) = y, found by bisection in float64."""
    turn, y_min = MINIMA[name].turn, MINIMA[name].y
    low = np.where(left, -800.0, turn)
    high = np.where(left, turn, np.maximum(y, 0) + 2)
    for _ in range(64):
        middle = (low + high) / 2
        rising = (reference(name, "f", middle) < y) != left
        low, high = np.where(rising, middle, low), np.where(rising, high, middle)
    at_a_limit = (y <= y_min) | (left & (y >= 0))
    return np.where(at_a_limit, 0.0, reference(name, "df", (low + high) / 2))


def outputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 outputs on both branches, dense at the minimum, in the tail and at the breaks."""
    turn, y_min = MINIMA[name].turn, MINIMA[name].y
    fit = TABLES[name]["float32"]
    tiny = -np.logspace(-45, -1, 5001)
    steps = np.arange(-300, 301) * 2.0**-26
    at_breaks = [(y + steps) for y in (*fit.breaks, fit.y_max)]
    lowest = y_min + steps[steps >= 0]
    x_left = np.concatenate([np.linspace(-30, turn, 60_001), turn - np.logspace(-5, 0, 5001)])
    x_right = np.concatenate([np.linspace(turn, 20, 60_001), turn + np.logspace(-5, 0, 5001)])
    y_left = np.concatenate([reference(name, "f", x_left), tiny[tiny > y_min], lowest])
    y_left = np.concatenate([y_left, fit.y_tail + steps, [0.0, -0.0, -1e-45]])
    y_right = np.concatenate([reference(name, "f", x_right), lowest, *at_breaks, [0.0, 1e3, 3e38]])
    y = np.concatenate([y_left, y_right]).astype(np.float32)
    return y, np.arange(len(y)) < len(y_left)


@pytest.mark.parametrize("name", NAMES)
def test_float32_error_is_bounded(name: str) -> None:
    """Against the exact inverse, and beside the minimum against all gradients of one output."""
    y, left = outputs(name)
    unit = np.spacing(np.float32(-MINIMA[name].y)).astype(float)
    half = np.where(y < MINIMA[name].y + 256 * unit, unit / 2, 0)
    ends = [gradient_of_output(name, y + off, left) for off in (-half, half)]
    for fused in (True, False):
        decoded = evaluate(TABLES[name]["float32"], y, left, fused)
        error = np.maximum(np.minimum(*ends) - decoded, decoded - np.maximum(*ends))
        assert error.max() <= FLOAT32_BAR, (y[error.argmax()], left[error.argmax()], fused)


@pytest.mark.parametrize("name", NAMES)
def test_float32_gradients_are_the_middle_of_those_that_share_an_output(name: str) -> None:
    """Of every float32 beside the minimum, f being rounded once."""
    turn = MINIMA[name].turn
    x = beside(turn, 60_000).double().numpy()
    y, g, left = reference(name, "f", x).astype(np.float32), reference(name, "df", x), x <= turn
    decoded = evaluate(TABLES[name]["float32"], y, left)
    floor = np.abs(middle_of_equal_outputs(y, left, g) - g).max()
    assert np.abs(decoded - g).max() <= 1.05 * floor < 1e-4


@pytest.mark.parametrize("dtype", ["float32", *HALVES])
@pytest.mark.parametrize("name", NAMES)
def test_limits_are_exact(name: str, dtype: str) -> None:
    fit = TABLES[name][dtype]
    dead = evaluate(fit, np.array([0.0, -0.0]), np.array([True, True]))
    live = evaluate(fit, np.array([fit.y_max, 100.0, np.inf]), np.zeros(3, bool))
    assert (dead == 0).all()
    assert (live == 1).all()
    assert np.isnan(evaluate(fit, np.full(2, np.nan), np.array([True, False]))).all()


# ---- every input of the 16-bit types ----


def finite_inputs(dtype: str) -> np.ndarray:
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(getattr(torch, dtype))
    values = bits.double().numpy()
    return np.unique(values[np.isfinite(values)])


def rounded(y: np.ndarray, dtype: str) -> np.ndarray:
    """To nearest, in one step from float64 (torch goes through float32)."""
    precision, least_exponent = {"bfloat16": (8, -126), "float16": (11, -14)}[dtype]
    exponent = np.maximum(np.frexp(y)[1] - 1, least_exponent)
    quantum = np.ldexp(1.0, exponent - precision + 1)
    return np.rint(y / quantum) * quantum


def normal_probabilities(x: np.ndarray) -> np.ndarray:
    """Under N(0, 1), of what rounds to each x."""
    edges = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
    below = torch.special.ndtr(torch.from_numpy(-np.abs(edges))).numpy()
    cumulative = np.where(edges < 0, below, 1 - below)
    return np.where(edges[1:] <= 0, np.diff(below), np.diff(cumulative))


def sizes(error: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.array([np.abs(error).max(), np.sqrt(np.sum(weights * error**2))])


def middle_of_equal_outputs(y: np.ndarray, left: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The decoder with the least maximum: no other can know more than y and the side."""
    decoded = np.empty_like(g)
    for side in (left, ~left):
        _, group = np.unique(y[side], return_inverse=True)
        low, high = np.full(group.max() + 1, np.inf), np.full(group.max() + 1, -np.inf)
        np.minimum.at(low, group, g[side])
        np.maximum.at(high, group, g[side])
        decoded[side] = ((low + high) / 2)[group]
    return decoded


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", NAMES)
def test_half_error_is_that_of_the_exact_inverse(name: str, dtype: str) -> None:
    x = finite_inputs(dtype)
    y, g, left = (
        rounded(reference(name, "f", x), dtype),
        reference(name, "df", x),
        x <= MINIMA[name].turn,
    )
    weights = normal_probabilities(x)
    exact = sizes(gradient_of_output(name, y, left) - g, weights)
    for fused in (True, False):
        table = sizes(evaluate(TABLES[name][dtype], y, left, fused) - g, weights)
        assert (table <= HALF_BAR * exact).all(), table / exact


@pytest.mark.parametrize("dtype", HALVES)
def test_h_mish_is_near_the_floor(dtype: str) -> None:
    x = finite_inputs(dtype)
    y = rounded(reference("h_mish", "f", x), dtype)
    g, left = reference("h_mish", "df", x), x <= -1
    right, saved = torch.from_numpy(~left), getattr(torch, dtype)
    decoded = ACTIVATIONS["h_mish"].df_y(torch.from_numpy(y).float(), right, saved).numpy()
    weights = normal_probabilities(x)
    floor = sizes(middle_of_equal_outputs(y, left, g) - g, weights)
    # One number for both sides, whose gradients at the minimum differ by a step of the inputs.
    assert (sizes(decoded - g, weights) <= 1.15 * floor).all()


# ---- the generated files ----


def test_cpp_and_python_tables_agree() -> None:
    header = (ROOT / "csrc" / "functions" / "df_y_tables.h").read_text()
    structs = {
        name.lower(): [float.fromhex(x) for x in re.findall(r"-?0x[0-9a-f.]+p[+-]\d+", body)]
        for name, body in re.findall(r"struct (\w+) \{(.*?)\n\};", header, re.DOTALL)
    }
    for name, by_dtype in TABLES.items():
        for dtype, fit in by_dtype.items():
            expected = [fit.y_min_hi, fit.y_min_lo, fit.least, fit.y_tail, fit.y_max, *fit.breaks]
            expected += [*fit.centers, *(c for row in fit.coefficients for c in row)]
            assert structs[name.replace("_", "") + dtype] == expected
