"""float32 beside the minimum, where one output stands for a whole range of gradients: the gradient
from the output is the middle of the range, and outputs are rounded once, which keeps it narrow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common import (
    DEFAULTS,
    FURTHER,
    KERNELS,
    OTHERS,
    PLAIN,
    TRITON,
    Case,
    Engine,
    assert_same_bits,
    bits_of,
    from_output,
    half_dtypes,
    mostly_slow,
)
from torch import Tensor

from mishkit.backends import torch as plain
from mishkit.functions import ACTIVATIONS
from mishkit.functions._branch_fit import Minimum
from mishkit.lab.accuracy.sampled import beside, ulp

NEAR, NEAR_INTERPRETED = 60_000, 6_000
"""How many float32 on each side of a minimum."""
BARS = {"mish": 7.8e-5, "silu": 6e-5, "gelu": 8e-5, "hardswish": 8e-5, "h_mish": 1.6e-4}
ABOVE_FLOOR = 1.1
"""What all others may be off, over what no decoder of these outputs can do without."""

MORE = [
    Case(ACTIVATIONS[name], parameters)
    for name, parameters in (
        ("swish", (1.702,)),
        ("swish", (100.0,)),
        ("hard_mish", (1000.0,)),
        ("aptx", (1.0, 0.5, 0.5)),
        ("aptx", (0.99, 1.0, 0.5)),
    )
]
TURNING = [case for case in DEFAULTS + OTHERS + FURTHER + MORE if case.turn]
every_minimum = pytest.mark.parametrize("case", mostly_slow(TURNING, DEFAULTS), ids=str)


def minimum_of(case: Case) -> Minimum | None:
    return case.a.minimum_at(*case.parameters)


def near(case: Case, count: int = NEAR) -> Tensor:
    """Every float32 next to the turn, but that at a kink, whose side is a matter of rounding."""
    assert case.turn is not None
    x = beside(case.turn, count)
    return x if minimum_of(case) else x[x != torch.tensor(case.turn, dtype=torch.float32)]


def floor_of(y: Tensor, right: Tensor, df: Tensor) -> float:
    """How far gradients are from the middle of those that share their output and side, at most."""
    furthest = 0.0
    for side in (right, ~right):
        outputs, group = y[side].unique(return_inverse=True)
        ends = (
            torch.zeros(outputs.shape, dtype=torch.float64).scatter_reduce(
                0, group, df[side], reduce, include_self=False
            )
            for reduce in ("amin", "amax")
        )
        low, high = ends
        furthest = max(furthest, ((high - low) / 2).max().item())
    return furthest


def assert_near(case: Case, x: Tensor, y: Tensor, gradient: Tensor) -> None:
    """The gradients of 1 from the outputs are those of the inputs but for what can't be known."""
    df = case.exactly("df", x)
    error = (gradient.double() - df).abs().max().item()
    if case.a.name in BARS:
        assert error <= BARS[case.a.name]
    floor = floor_of(y, x.double() > case.turn, df)
    # A slope of 1 is itself rounded, and its formula in float32 besides.
    assert error <= ABOVE_FLOOR * floor + 4e-7 * max(1, df.abs().max().item())


@every_minimum
def test_the_gradient_is_the_middle_of_those_that_share_an_output(
    every_engine: Engine, case: Case
) -> None:
    x = near(case, NEAR_INTERPRETED if every_engine in TRITON else NEAR)
    y, side = every_engine.operator(case, "_packed")(x)
    decode = every_engine.operator(case, "_backward_packed")
    assert_near(case, x, y, decode(torch.ones_like(x), y, side))


@every_minimum
def test_outputs_with_sides_are_rounded_once(every_engine: Engine, case: Case) -> None:
    """Beside the minimum; all others are those without sides, to the bit."""
    x = near(case, NEAR_INTERPRETED if every_engine in TRITON else NEAR)
    y, _ = every_engine.operator(case, "_packed")(x)
    without, f = every_engine.operator(case)(x), case.exactly("f", x)
    minimum = minimum_of(case)
    if minimum is None:
        assert_same_bits(y, without)
        return
    error = (y.double() - f).abs() / torch.from_numpy(ulp(f.numpy(), "float32"))
    beside_it = f - minimum.y < 0.95 * minimum.reach
    assert beside_it.sum() > 1000 and error[beside_it].max() <= 0.6
    far = f - minimum.y > 1.05 * minimum.reach
    assert_same_bits(y[far], without[far])


@every_minimum
@half_dtypes
def test_16_bit_outputs_are_those_without_sides(
    every_engine: Engine, case: Case, dtype: torch.dtype
) -> None:
    x = near(case, 2000).to(dtype)
    y, _ = every_engine.operator(case, "_packed")(x)
    assert_same_bits(y, every_engine.operator(case)(x))


def test_the_joint_may_be_beside_the_minimum(every_engine: Engine) -> None:
    """hard_mish is a parabola left of k − 3 alone, the minimum itself where k is 3/2."""
    for k in (1.5, 1.5 + 2.0**-12, 1.5 + 2.0**-8, 1.2):
        case = Case(ACTIVATIONS["hard_mish"], (k,))
        x = near(case, NEAR_INTERPRETED)
        y, _ = every_engine.operator(case, "_packed")(x)
        torch.testing.assert_close(y.double(), case.exactly("f", x), rtol=2e-7, atol=0)


# ---- as it is called ----


def gradient_of(
    case: Case, x: Tensor, options: dict[str, Any], call: Any = None
) -> tuple[Any, ...]:
    leaf = x.clone().requires_grad_()
    y = call(leaf) if call else case.call(leaf * 1, **options)
    y.sum().backward()
    return y.detach(), leaf.grad


@from_output
@every_minimum
def test_called(case: Case, options: dict[str, Any]) -> None:
    x = near(case)
    assert_near(case, x, *gradient_of(case, x, options))


@from_output
@pytest.mark.parametrize(
    "case",
    mostly_slow([c for c in TURNING if c.a.name in ("mish", "swish", "h_mish")][:4], 1),
    ids=str,
)
def test_compiled(case: Case, options: dict[str, Any], fresh_compiler: None) -> None:
    x = near(case, 20_000)
    call = torch.compile(lambda x: case.call(x * 1, **options), backend="aot_eager", fullgraph=True)
    y, gradient = gradient_of(case, x, {}, call)
    assert_same_bits(y, plain.forward_packed(case.a, x, *case.parameters)[0])
    assert_near(case, x, y, gradient)


@pytest.mark.skipif(not KERNELS, reason="needs the kernels")
@pytest.mark.parametrize("case", [c for c in TURNING if c in DEFAULTS], ids=str)
def test_one_packs_and_another_decodes(case: Case) -> None:
    x = near(case, 20_000)
    y, side = PLAIN.operator(case, "_packed")(x)
    assert_near(
        case, x, y, KERNELS[-1].operator(case, "_backward_packed")(torch.ones_like(x), y, side)
    )


def test_other_layouts_and_no_elements(every_engine: Engine) -> None:
    """The rounding is that of each element, wherever it lies: whole vectors, tails and gaps."""
    case = next(c for c in TURNING if c.a.name == "mish")
    packed = every_engine.operator(case, "_packed")
    x = near(case, 300)
    want, _ = packed(x)
    for length in (0, 1, 7, 63, 65, 601):
        assert_same_bits(packed(x[:length])[0], want[:length])
    assert_same_bits(packed(x[::2])[0], want[::2])
    assert_same_bits(packed(x[:600].view(20, 30).T)[0], want[:600].view(20, 30).T)
    assert bits_of(want).unique().numel() < 200
