"""The plain formulas against each other, in float64: everything else is tested against them."""

from __future__ import annotations

import math

import pytest
import references
import torch
from common import SHAPES, Case, every_decoding, every_shape
from torch import Tensor

from mishkit.functions import ACTIVATIONS


def points() -> Tensor:
    """Around every bend, but on no kink of any function."""
    return torch.linspace(-24.987, 24.987, 4001, dtype=torch.float64)


def slope(y: Tensor, x: Tensor) -> Tensor:
    if not y.requires_grad:  # a constant
        return torch.zeros_like(x)
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


@every_shape
@pytest.mark.parametrize(("formula", "derivative"), [("f", "df"), ("df", "d2f")])
def test_each_formula_is_the_derivative_of_the_one_before(
    case: Case, formula: str, derivative: str
) -> None:
    x = points().requires_grad_()
    want = slope(case.exactly(formula, x), x)
    torch.testing.assert_close(case.exactly(derivative, x), want, rtol=1e-10, atol=1e-12)


@every_shape
def test_the_portable_form_is_the_same_function(case: Case) -> None:
    x = points()
    got = case.a.portable(x, *case.parameters)
    torch.testing.assert_close(got, case.exactly("f", x), rtol=1e-10, atol=1e-13)


@every_decoding
def test_f_falls_to_the_turn_and_rises_after_it(case: Case) -> None:
    if case.turn is None:
        slopes = case.exactly("df", points())
        assert (slopes >= 0).all() or (slopes <= 0).all()
        return
    turn = torch.tensor(case.turn, dtype=torch.float64)
    either_side = torch.stack([turn - 1e-9, turn + 1e-9])
    assert (case.exactly("df", either_side).sign() == torch.tensor([-1, 1])).all()
    x = points()
    assert (case.exactly("df", x) * (x - turn).sign() >= 0).all()


@pytest.mark.parametrize(
    ("name", "last", "beyond"),
    [
        ("swish", (1e-30,), (0.0,)),
        ("aptx", (1.0, 1.0, 0.5), (1 + 1e-15, 1.0, 0.5)),
        ("aptx", (-0.999, 1.0, 0.5), (-1.0, 1.0, 0.5)),
        ("aptx", (0.5, 1e-30, 1e-30), (0.5, 1.0, 0.0)),
        ("aptx", (0.5, -1e-30, -1e-30), (0.5, 1.0, -1e-30)),
    ],
    ids=str,
)
def test_there_is_a_turn_up_to_the_edge(
    name: str, last: tuple[float, ...], beyond: tuple[float, ...]
) -> None:
    a = ACTIVATIONS[name]
    assert math.isfinite(a.turn_at(*last))
    with pytest.raises(ValueError, match="minimum where"):
        a.turn_at(*beyond)


@every_decoding
def test_the_derivative_from_the_output(case: Case) -> None:
    x = points()
    y = case.exactly("f", x)
    right = x > case.turn if case.turn is not None else y
    got = case.a.df_y(y, right, torch.float64, *case.parameters)
    torch.testing.assert_close(got, case.exactly("df", x), rtol=0, atol=1e-7)


@every_shape
def test_limits(case: Case) -> None:
    """The values at ±inf are those that the definition tends to, zeros with their sign."""
    ends = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)
    at = [references.limit(case.a.name, side, *case.parameters) for side in (-1, 1)]
    got = case.exactly("f", ends).tolist()
    assert got == at
    assert [math.copysign(1, y) for y in got] == [math.copysign(1, y) for y in at]
    for order, formula in enumerate(("df", "d2f"), start=1):
        far = [references.df(case.a.name, x, *case.parameters, order=order) for x in (-1e4, 1e4)]
        got = case.exactly(formula, ends).tolist()
        want = [float(s) if abs(s) < 1e3 else math.copysign(math.inf, s) for s in far]
        assert got == pytest.approx(want, rel=1e-15, abs=1e-12)


@every_shape
@pytest.mark.parametrize("formula", ["f", "df", "d2f"])
def test_no_finite_input_gives_nan(case: Case, formula: str) -> None:
    far = torch.tensor([-1.7e308, -1e30, -1e-300, 0.0, 5e-324, 1e30, 1.7e308])
    assert not case.exactly(formula, far).isnan().any()


@pytest.mark.parametrize("case", [case for case in SHAPES if case.a.trainable], ids=str)
def test_derivatives_towards_the_parameters(case: Case) -> None:
    """On the curve, far out, and at ±inf, where they are what they tend to."""
    places = [-1e4, -30.0, -2.0, -0.7, 0.0, 0.4, 3.0, 30.0, 1e4]
    x = torch.tensor([-math.inf, *places, math.inf], dtype=torch.float64)
    assert case.a.dp is not None
    for i, got in enumerate(case.a.dp(x, *case.parameters)):
        want = [float(references.dp(case.a.name, at, i, *case.parameters)) for at in places]
        ends = [v if abs(v) < 1e3 else math.copysign(math.inf, v) for v in (want[0], want[-1])]
        assert got.tolist() == pytest.approx([ends[0], *want, ends[1]], rel=1e-12, abs=1e-12)
