"""The plain formulas against each other, in float64: everything else is tested against them."""

from __future__ import annotations

import pytest
import torch
from common import Case, every_case, every_function, every_turning
from torch import Tensor


def points() -> Tensor:
    """Around every bend, but on no kink of any function."""
    return torch.linspace(-24.987, 24.987, 4001, dtype=torch.float64)


def slope(y: Tensor, x: Tensor) -> Tensor:
    if not y.requires_grad:  # a constant
        return torch.zeros_like(x)
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


@every_case
@pytest.mark.parametrize(("formula", "derivative"), [("f", "df"), ("df", "d2f")])
def test_each_formula_is_the_derivative_of_the_one_before(
    case: Case, formula: str, derivative: str
) -> None:
    x = points().requires_grad_()
    want = slope(case.exactly(formula, x), x)
    torch.testing.assert_close(case.exactly(derivative, x), want, rtol=1e-10, atol=1e-12)


@every_case
def test_the_portable_form_is_the_same_function(case: Case) -> None:
    x = points()
    got = case.a.portable(x, *case.parameters)
    torch.testing.assert_close(got, case.exactly("f", x), rtol=1e-10, atol=1e-13)


@every_turning
def test_the_minimum_is_at_the_turn(case: Case) -> None:
    turn = torch.tensor(case.a.turn, dtype=torch.float64)
    assert case.exactly("df", turn).abs() < 1e-15
    assert (case.exactly("df", turn - 0.01) < 0) & (case.exactly("df", turn + 0.01) > 0)
    assert (case.exactly("f", points()) >= case.exactly("f", turn)).all()


@every_function
def test_a_function_without_a_turn_never_falls(case: Case) -> None:
    if case.a.turn is None:
        assert (case.exactly("df", points()) >= 0).all()


@every_case
def test_the_derivative_from_the_output(case: Case) -> None:
    x = points()
    y = case.exactly("f", x)
    right = x > case.a.turn if case.a.turn is not None else y
    got = case.a.df_y(y, right, torch.float64, *case.parameters)
    torch.testing.assert_close(got, case.exactly("df", x), rtol=0, atol=1e-7)


@every_case
@pytest.mark.parametrize("formula", ["f", "df", "d2f"])
def test_limits(case: Case, formula: str) -> None:
    """Formulas reach their limits: the values at ±inf are those far out, and none is NaN."""
    far = torch.tensor([-1e300, -1e30, 1e30, 1e300], dtype=torch.float64)
    ends = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)
    got = case.exactly(formula, ends).tolist()
    assert not case.exactly(formula, far).isnan().any()
    limits = {"f": (0.0, torch.inf), "df": (0.0, 1.0), "d2f": (0.0, 0.0)}[formula]
    assert got == pytest.approx(limits, rel=1e-15, abs=1e-12)
