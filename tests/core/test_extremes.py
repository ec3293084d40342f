"""The ends of what parameters and gradients may be: right, or refused with one line."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
from common import (
    DEFAULTS,
    KERNELS,
    PLAIN,
    Case,
    Engine,
    assert_same_bits,
    every_dtype,
    spread,
)
from mpmath import mpf
from pairwise import pairwise
from torch import Tensor

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
    ones = torch.ones_like(x)
    for values in accepted(case):
        operator = getattr(torch.ops.mishkit, f"{case.a.name}")
        backward = getattr(torch.ops.mishkit, f"{case.a.name}_backward")
        double = getattr(torch.ops.mishkit, f"{case.a.name}_double_backward")
        results = (
            operator(x, *values),
            backward(ones, x, *values),
            double(ones, ones, x, *values)[1],
            plain.forward(case.a, x, *values),
            plain.backward(case.a, ones, x, *values),
            plain.double_backward(case.a, ones, ones, x, *values)[1],
        )
        assert not any(result.isnan().any() for result in results), values


ALPHAS = (0.0, 1e-12, 1e-8, -1e-3, 1e-3, 0.1, -0.24, 1 - 1e-6, -1.0, -1 + 1e-6)


@functools.cache
def exact_aptx(
    dtype: torch.dtype, alpha: float, beta: float, gamma: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs; f, f' and f'', a row each; the sizes of f, of what f' is a sum of, and of the largest
    f''; and the size of alpha + tanh u."""
    sizes = torch.logspace(-12, 1.8, 60, dtype=torch.float64)
    x = torch.cat([sizes, -sizes]).to(dtype)
    with mpmath.workdps(120):
        a, b, c = mpf(alpha), mpf(beta), mpf(gamma)
        rows = []
        for value in x.tolist():
            u = b * mpf(value)
            t = mpmath.tanh(u)
            s = mpmath.sech(u) ** 2
            rows.append(
                (
                    *(c * value * (a + t), c * (a + t + u * s), 2 * b * c * s * (1 - u * t)),
                    *(c * (abs(a + t) + abs(u * s)), 2 * abs(b * c)),
                    abs(a + t),
                )
            )
        f, df, d2f, size, size_2, total = torch.tensor(
            [[float(n) for n in row] for row in rows], dtype=torch.float64
        ).T
    clear = total > 0.5 * min(abs(alpha), 0.5)  # not beside the root, where only f's size counts
    clear |= alpha == -1
    values = torch.stack([f, df, d2f])
    return x[clear], values[:, clear], torch.stack([f.abs(), size, size_2])[:, clear], total[clear]


@pytest.mark.parametrize("beta", [1.0, -0.3, 1e-6])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_aptx_keeps_its_digits_for_every_alpha(
    every_engine: Engine, dtype: torch.dtype, alpha: float, beta: float
) -> None:
    """Where tanh is nearly alone, and where one side vanishes."""
    gamma = 0.7
    x, want, sizes, _ = exact_aptx(dtype, alpha, beta, gamma)
    case, ones = Case(ACTIVATIONS["aptx"], (alpha, beta, gamma)), torch.ones_like(x)
    results = (
        every_engine.operator(case)(x),
        every_engine.operator(case, "_backward")(ones, x),
        every_engine.operator(case, "_double_backward")(ones, ones, x)[1],
    )
    info = torch.finfo(dtype)
    for got, right, size in zip(results, want, sizes, strict=True):
        # exp stops at the least normal number, or at 0.
        allowed = 24 * info.eps * size + 8 * info.tiny * x.double().abs().clamp_min(1)
        assert ((got.double() - right).abs() <= allowed).all()


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_trained_aptx_keeps_its_digits_for_every_alpha(
    every_engine: Engine, dtype: torch.dtype, alpha: float
) -> None:
    """In one channel beside an ordinary one, long and short ones, and its gradient to gamma."""
    parameters = torch.tensor([[alpha, 1.0], [0.9, 1.0], [0.7, 0.5]], dtype=dtype)
    of_channel = [parameters[:, channel].tolist() for channel in (0, 1)]
    x, want, sizes, total = exact_aptx(dtype, *of_channel[0])
    case, eps = Case(ACTIVATIONS["aptx"], tuple(of_channel[0])), torch.finfo(dtype).eps
    least = 8 * torch.finfo(dtype).tiny * x.double().abs().clamp_min(1)
    # Plain torch rounds what its exponentials are of.
    rounding = eps * (24 if every_engine in KERNELS else 24 + 2 * x.double().abs())
    for given in (torch.stack([x, x])[None], torch.stack([x, x], 1)):  # long runs, and short ones
        got = every_engine.operator(case, "_trained")(given.contiguous(), parameters)
        ours, other = got.unbind(1)
        assert ((ours.double().view(-1) - want[0]).abs() <= rounding * sizes[0] + least).all()
        alone = every_engine.operator(case, "_trained")(given[:, 1].contiguous(), parameters[:, 1:])
        if every_engine is not PLAIN:
            assert_same_bits(other.contiguous(), alone)
        grad = torch.ones_like(given)
        to_x, to_parameters = every_engine.operator(case, "_trained_backward")(
            grad.contiguous(), given.contiguous(), parameters
        )
        slopes = to_x[:, 0].double().view(-1)
        assert ((slopes - want[1]).abs() <= rounding * sizes[1] + least).all()
        to_gamma = (want[0] / of_channel[0][2]).sum()
        size = (x.double().abs() * total).sum()
        assert (to_parameters[2, 0].double() - to_gamma).abs() <= 24 * eps * size
    # One small input: here the sum has no larger ones beside it.
    small = torch.full((1, 2, 64), 1e-6, dtype=dtype)
    backward = every_engine.operator(case, "_trained_backward")
    to_gamma = backward(torch.ones_like(small), small, parameters)[1][2, 0].item()
    exact = 64 * small[0, 0, 0].item()
    exact *= of_channel[0][0] + math.tanh(of_channel[0][1] * small[0, 0, 0].item())
    assert abs(to_gamma - exact) <= 24 * eps * abs(exact)


def test_aptx_of_minus_alpha_is_its_mirror_image() -> None:
    x = spread(torch.float32, 500)
    for alpha, beta, gamma in ((1.0, 1.0, 0.5), (0.999, 0.7, -2.0), (0.1, -1.3, 0.5)):
        assert torch.equal(
            mishkit.aptx(x, -alpha, beta, gamma), mishkit.aptx(x, alpha, -beta, -gamma)
        )
    assert (mishkit.aptx(x[x > 60], -1.0) == 0).all()


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


@pytest.mark.parametrize("name", ["leaky_relu", "elu"])
@every_dtype
def test_a_left_side_of_0_is_relu_at_infinity_too(
    every_engine: Engine, name: str, dtype: torch.dtype
) -> None:
    """Where 0 times an infinite input would be NaN."""
    case, x = Case(ACTIVATIONS[name], (0.0,)), torch.cat([spread(dtype, 200), torch.tensor([-INF])])
    x = x.to(dtype)
    ones = torch.ones_like(x)
    y, side = every_engine.operator(case, "_packed")(x)
    assert torch.equal(y, x.relu()) and torch.equal(every_engine.operator(case)(x), x.relu())
    for gradient in (
        every_engine.operator(case, "_backward")(ones, x),
        every_engine.operator(case, "_backward_packed")(ones, y, side),
    ):
        assert torch.equal(gradient, (x > 0).to(dtype))


def test_an_output_that_overflows_gives_the_slope_of_an_infinite_input(
    every_engine: Engine,
) -> None:
    """relu2 alone grows faster than its input."""
    case, x = Case(ACTIVATIONS["relu2"], ()), torch.tensor([300.0, INF] * 20, dtype=torch.float16)
    y, side = every_engine.operator(case, "_packed")(x)
    assert y.isposinf().all()
    assert (
        every_engine.operator(case, "_backward_packed")(torch.ones_like(y), y, side).isinf().all()
    )
    from_input = every_engine.operator(case, "_backward")(torch.ones_like(x), x)
    assert from_input[0] == 600 and from_input[1] == INF


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
