"""The ends of what parameters and gradients may be: right, or refused with one line."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common import DEFAULTS, Case, every_dtype
from pairwise import pairwise

import mishkit
from mishkit.activation import DTYPES
from mishkit.backends import torch as plain
from mishkit.functions import ACTIVATIONS
from mishkit.functions._limits import LARGEST, SMALLEST

INF, NAN = float("inf"), float("nan")
PARAMETRIC = [case for case in DEFAULTS if case.a.parameters]
DEAD = [case for case in DEFAULTS if case.a.is_dead]
SIZES = (SMALLEST, 1e-4, 1.0, 1e4, LARGEST)


@pytest.mark.parametrize("case", PARAMETRIC, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [1e-45, 1e-39, 1e-16, 1e11, 1e30, 3.4e38, 1e39, 1.7e308])
def test_parameters_that_leave_float32_are_refused(case: Case, sign: int, size: float) -> None:
    for place, parameter in enumerate(case.a.parameters):
        if parameter.smallest <= size <= parameter.largest or (parameter.positive and sign < 0):
            continue
        values = [*case.a.defaults]
        values[place] = sign * size
        message = rf"mishkit\.{case.a.name}: {parameter.name} must be of a size from .*, not "
        for call in (
            lambda values=values: getattr(mishkit, case.a.name)(torch.ones(3), *values),
            lambda values=values: getattr(mishkit, case.a.module_name)(*values),
        ):
            with pytest.raises(ValueError, match=message) as error:
                call()
            assert "\n" not in str(error.value)


def accepted(case: Case) -> list[tuple[float, ...]]:
    """Every parameter at its ends in turn, and all at once."""
    sets = []
    for size in SIZES:
        for sign in (1, -1):
            for only in (None, *range(len(case.a.parameters))):
                values = [
                    sign * size if only in (None, place) else default
                    for place, default in enumerate(case.a.defaults)
                ]
                if not any(p.check(v) for p, v in zip(case.a.parameters, values, strict=True)):
                    sets.append(tuple(values))
    return sets


@pytest.mark.parametrize("case", PARAMETRIC, ids=str)
@every_dtype
def test_accepted_parameters_give_numbers(case: Case, dtype: torch.dtype) -> None:
    """f, f' and f'' of every finite input, by kernels and by plain torch: no NaN, and they agree
    where the result is one."""
    largest = torch.finfo(dtype).max
    sizes = [0.0, torch.finfo(dtype).tiny, 1e-6, 0.3, 3.0, 50.0, 3e4, largest]
    x = torch.tensor([sign * size for size in sizes for sign in (1, -1)]).double().to(dtype)
    one = torch.ones_like(x)
    for values in accepted(case):
        operator = getattr(torch.ops.mishkit, f"{case.a.name}")
        backward = getattr(torch.ops.mishkit, f"{case.a.name}_backward")
        double = getattr(torch.ops.mishkit, f"{case.a.name}_double_backward")
        found = (operator(x, *values), backward(one, x, *values), double(one, one, x, *values)[1])
        want = (
            plain.forward(case.a, x, *values),
            plain.backward(case.a, one, x, *values),
            plain.double_backward(case.a, one, one, x, *values)[1],
        )
        for got, other in zip(found, want, strict=True):
            assert not got.isnan().any() and not other.isnan().any(), values


@pytest.mark.parametrize("alpha", [0.0, 1e-12, -1e-3, 0.1, -0.24])
@pytest.mark.parametrize("beta", [1.0, -0.3, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_aptx_keeps_its_digits_beside_zero(alpha: float, beta: float, dtype: torch.dtype) -> None:
    """Where tanh is nearly alone, in plain torch; the kernels lose digits there."""
    sizes = torch.logspace(-12, 1, 200, dtype=torch.float64)
    sizes = torch.cat([sizes, -sizes]).to(dtype)
    x = sizes[((beta * sizes.double()).tanh() + alpha).abs() > 0.5 * abs(alpha)]
    u, one = beta * x.double(), torch.ones_like(x)
    t = u.tanh()
    f = (alpha + t) * 0.7 * x.double()
    df = 0.7 * (alpha + t + u * (1 - t * t))
    # f' crosses 0 elsewhere: there only its size counts.
    size = 0.7 * (alpha + t).abs().maximum((u * (1 - t * t)).abs())
    given = (alpha, beta, 0.7)
    eps = torch.finfo(dtype).eps
    parameters = torch.tensor([[alpha], [beta], [0.7]], dtype=dtype)
    exact = parameters.double()
    trained = (exact[0] + (exact[1] * x.double()).tanh()) * exact[2] * x.double()
    a = ACTIVATIONS["aptx"]
    for got, want, scale in (
        (plain.forward(a, x, *given), f, f.abs()),
        (plain.backward(a, one, x, *given), df, size),
        (plain.trained(a, x, parameters), trained, trained.abs()),
    ):
        assert ((got.double() - want).abs() <= 24 * eps * scale).all()


@pairwise(
    {
        "case": DEAD,
        "dtype": DTYPES,
        "grad,options": list(
            itertools.product([INF, -INF, NAN], [{}, {"save": "output"}, {"inplace": True}])
        ),
    }
)
def test_no_gradient_passes_dead_units(
    case: Case, dtype: torch.dtype, grad: float, options: dict[str, Any]
) -> None:
    x = torch.tensor([-40.0, -3.5, -INF] * 30, dtype=dtype, requires_grad=True)
    (got,) = torch.autograd.grad(case.call(x * 1, **options).sum(), x, torch.tensor(grad).to(dtype))
    assert torch.equal(got, torch.zeros_like(got))
    out = plain.backward(case.a, torch.full_like(x, grad), x.detach(), *case.parameters)
    assert torch.equal(out, torch.zeros_like(out))
    if case.a.torch_function:
        theirs = getattr(F, case.a.torch_function)(x)
        (want,) = torch.autograd.grad(theirs.sum(), x, torch.tensor(grad).to(dtype))
        assert torch.equal(got, want)


@pytest.mark.parametrize("case", DEAD, ids=str)
def test_a_second_derivative_of_dead_units(case: Case) -> None:
    x = torch.tensor([-40.0, -3.5] * 30)
    grad = torch.full_like(x, INF)
    for to_grad, to_x in (
        getattr(torch.ops.mishkit, f"{case.a.name}_double_backward")(
            grad, grad, x, *case.parameters
        ),
        plain.double_backward(case.a, grad, grad, x, *case.parameters),
    ):
        assert not to_grad.any() and not to_x.any()
