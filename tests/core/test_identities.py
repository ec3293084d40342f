"""Facts about the family: members that equal each other, minima, joints, distances to Mish."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from common import ENGINES, Case, Engine, assert_rounds, every_dtype, spread
from pairwise import pairwise
from torch import Tensor

import mishkit
from mishkit.activation import DTYPES
from mishkit.functions import ACTIVATIONS


def case(name: str, *parameters: float) -> Case:
    a = ACTIVATIONS[name]
    return Case(a, parameters or a.defaults)


def at(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def value(function: Case, formula: str, x: float) -> float:
    return function.exactly(formula, at(x)).item()


# ---- the same function under two names ----

SAME = [
    *((case("aptx", 1, rho / 2, 0.5), case("swish", rho)) for rho in (0.3, 1.0, 1.7, 2.0, 11.0)),
    (case("aptx", 1, 0.5, 0.5), case("silu")),
    (case("aptx", 1, 1, 0.5), case("swish", 2)),
    (case("swish", 1), case("silu")),
    (case("hard_mish", 6), case("hardswish")),
]
every_pair = pytest.mark.parametrize(("first", "second"), SAME, ids=str)


@every_pair
@pytest.mark.parametrize("formula", ["f", "df", "d2f"])
def test_one_function_under_two_names(first: Case, second: Case, formula: str) -> None:
    x = torch.linspace(-40, 40, 8001, dtype=torch.float64)
    got, want = first.exactly(formula, x), second.exactly(formula, x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)
    if first.turn is not None:
        assert first.turn == pytest.approx(second.turn, rel=1e-15)


@pairwise({"engine": ENGINES, "dtype": DTYPES, "first,second": SAME})
def test_two_names_in_every_dtype(
    engine: Engine, first: Case, second: Case, dtype: torch.dtype
) -> None:
    x = spread(dtype)
    ones = torch.ones_like(x)
    for ending, arguments in (("", (x,)), ("_backward", (ones, x))):
        got, want = (engine.operator(c, ending)(*arguments) for c in (first, second))
        assert_rounds(got, want.double(), extra=0.5 * torch.finfo(dtype).eps)


def test_pieces_of_others() -> None:
    x = torch.linspace(-30, 30, 6001, dtype=torch.float64)
    left, right = x[x <= 0], x[x >= 0]
    silu, swish2, piecewise = case("silu"), case("swish", 2), case("piecewise_swish")
    same = {"rtol": 1e-13, "atol": 0}
    torch.testing.assert_close(piecewise.exactly("f", left), silu.exactly("f", left), **same)
    torch.testing.assert_close(piecewise.exactly("f", right), swish2.exactly("f", right), **same)
    linear, swish = case("linear_swish"), case("swish", 1.25)
    torch.testing.assert_close(
        linear.exactly("f", left), 2 * swish.exactly("f", left), rtol=1e-13, atol=0
    )
    assert torch.equal(linear.exactly("f", right), right)


# ---- minima ----


@pytest.mark.parametrize(
    ("function", "x", "y", "digits"),
    [
        (case("mish"), -1.1924312, -0.3088434, 7),
        (case("h_mish"), -1, -0.5, 16),
        *((case("hard_mish", k), -1.5, -9 / (4 * k), 15) for k in (1.5, 2, 3, 4, 5, 6, 50)),
        (case("hard_mish", 1.2), -1.8, -1.8, 15),
        (case("hardswish"), -1.5, -0.375, 16),
        (case("linear_swish"), -1.02277, -0.44554, 5),
    ],
    ids=str,
)
def test_minima(function: Case, x: float, y: float, digits: int) -> None:
    assert function.turn == pytest.approx(x, abs=0.5 * 10.0**-digits)
    assert value(function, "f", function.turn) == pytest.approx(y, abs=0.5 * 10.0**-digits)


def test_mish() -> None:
    """The figures of its derivatives."""
    function, x = case("mish"), torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    slopes = function.exactly("df", x)
    assert slopes.min().item() == pytest.approx(-0.1125, abs=5e-5)
    assert slopes.max().item() == pytest.approx(1.0885, abs=5e-5)
    assert value(function, "df", 0) == pytest.approx(0.6, rel=1e-15)
    assert value(function, "d2f", 0) == pytest.approx(0.64, rel=1e-15)
    signs = function.exactly("d2f", x).sign()
    changes = x[1:][signs[1:] != signs[:-1]]
    torch.testing.assert_close(
        changes, torch.tensor([-2.25638, 1.49057]).double(), rtol=0, atol=1e-4
    )


# ---- joints ----


@dataclass(frozen=True)
class Joint:
    """Where two pieces meet: f, f' and f'' from the left, and from the right."""

    function: Case
    x: float
    left: tuple[float, float, float]
    right: tuple[float, float, float]

    def __str__(self) -> str:
        return f"{self.function}-at{self.x:g}"

    @property
    def smoothness(self) -> int:
        """How many derivatives, f being the 0th, agree; −1 for none."""
        agree = [a == pytest.approx(b) for a, b in zip(self.left, self.right, strict=True)]
        return [*agree, False].index(False) - 1


JOINTS = [
    (Joint(case("relu"), 0, (0, 0, 0), (0, 1, 0)), 0),
    (Joint(case("h_mish"), -2, (0, 0, 0), (0, -1, 1)), 0),
    (Joint(case("h_mish"), 0, (0, 1, 1), (0, 1, 0)), 1),
    (Joint(case("piecewise_swish"), 0, (0, 0.5, 0.5), (0, 0.5, 1)), 1),
    (Joint(case("linear_swish"), 0, (0, 1, 1.25), (0, 1, 0)), 1),
    *((Joint(case("hard_mish", k), -3, (0, 0, 0), (0, -3 / k, 2 / k)), 0) for k in (2, 3, 5, 6)),
    # Smooth for k = 3 alone.
    *(
        (Joint(case("hard_mish", k), k - 3, (k - 3, 2 - 3 / k, 2 / k), (k - 3, 1, 0)), order)
        for k, order in ((1.2, 0), (2, 0), (3, 1), (5, 0), (6, 0))
    ),
]


@pytest.mark.parametrize(("joint", "order"), JOINTS, ids=str)
def test_joints(joint: Joint, order: int) -> None:
    step = 1e-7
    for x, sides in ((joint.x - step, joint.left), (joint.x + step, joint.right)):
        got = [value(joint.function, formula, x) for formula in ("f", "df", "d2f")]
        assert got == pytest.approx(sides, abs=1e-6)
    assert joint.smoothness == order


# ---- towards ReLU ----


@pytest.mark.parametrize("beta", [1.0, 4.0, 100.0, 1e6])
def test_aptx_tends_to_relu(beta: float) -> None:
    """Nowhere further from it than 0.13923/beta, and as far as that somewhere."""
    z = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    distance = case("aptx", 1, beta, 0.5).exactly("f", z / beta) - (z / beta).relu()
    assert distance.abs().max().item() == pytest.approx(0.13923 / beta, rel=1e-4)


SHARP = 1e6
SHARPEST = {"swish": {"beta": SHARP}, "aptx": {"beta": SHARP}}


@every_dtype
@pytest.mark.parametrize("trained", [False, True], ids=["fixed", "trained"])
@pytest.mark.parametrize("name", SHARPEST)
def test_a_sharp_function_is_relu_and_no_nan(name: str, trained: bool, dtype: torch.dtype) -> None:
    """1e6 is infinite in float16: it must not meet the input there."""
    values = [v for v in (0.0, 1e-5, 1e-3, 0.5, 1.0, 3.0, 1000.0, 65504.0) for v in (v, -v)]
    x = torch.tensor(values, dtype=dtype).requires_grad_()
    named = {
        n: torch.tensor(v).requires_grad_() if trained else v for n, v in SHARPEST[name].items()
    }
    y = getattr(mishkit, name)(x, **named)
    y.sum().backward()
    # At such inputs the formula itself tells how far from ReLU the function is.
    defaults = {p.name: p.default for p in ACTIVATIONS[name].parameters}
    exactly = case(name, *(defaults | SHARPEST[name]).values())
    assert_rounds(y.detach(), exactly.exactly("f", x.detach()))
    assert_rounds(x.grad, exactly.exactly("df", x.detach()))
    far = x.detach().abs() > 1e-4
    assert torch.equal(y[far].detach(), x[far].detach().relu())
    step = (x.detach()[far] > 0).to(dtype)
    torch.testing.assert_close(x.grad[far], step, rtol=2 * torch.finfo(dtype).eps, atol=0)
    for parameter in named.values():
        if trained:
            assert parameter.grad.isfinite()


# ---- closeness to mish ----


# The largest |g − mish| and where it is, and √E|g − mish|² under N(0, 1).
CLOSENESS = [
    (case("piecewise_swish"), 0.0359, -0.791, 0.0219),
    (case("hard_mish", 5), 0.1595, -1.730, 0.0654),
    (case("swish", 1), 0.1844, 1.821, 0.0804),
    (case("aptx", 1, 0.5, 0.5), 0.1844, 1.821, 0.0804),
    (case("swish", 2), 0.2283, -1.617, 0.1022),
    (case("aptx", 1, 1, 0.5), 0.2283, -1.617, 0.1022),
    (case("linear_swish"), 0.1464, -0.821, 0.1086),
    (case("hardswish"), 0.2895, 1.747, 0.1188),
    (case("hard_mish", 4), 0.2701, -1.673, 0.1254),
    (case("h_mish"), 0.2525, -2, 0.1285),
    (case("relu"), 0.3088, -1.192, 0.1827),
    (case("hard_mish", 3), 0.4558, -1.621, 0.2162),
]


@pytest.mark.parametrize(("function", "most", "where", "mean"), CLOSENESS, ids=str)
def test_closeness_to_mish(function: Case, most: float, where: float, mean: float) -> None:
    x = torch.linspace(-12, 12, 480_001, dtype=torch.float64)
    distance = function.exactly("f", x) - case("mish").exactly("f", x)
    farthest = distance.abs().argmax()
    assert distance[farthest].abs().item() == pytest.approx(most, abs=5e-5)
    assert x[farthest].item() == pytest.approx(where, abs=5e-4)
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    integral = torch.trapezoid(distance.square() * density, x)
    assert integral.sqrt().item() == pytest.approx(mean, abs=5e-5)


@pytest.mark.parametrize(
    ("function", "most", "side"),
    [(case("swish", 1), 0.0359, -1), (case("swish", 2), 0.0255, 1)],
    ids=str,
)
def test_each_swish_is_close_on_one_side(function: Case, most: float, side: int) -> None:
    """Which is why the two are joined in piecewise_swish."""
    x = side * torch.linspace(0, 12, 240_001, dtype=torch.float64)
    distance = function.exactly("f", x) - case("mish").exactly("f", x)
    assert distance.abs().max().item() == pytest.approx(most, abs=5e-5)
