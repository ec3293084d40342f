"""The RMS norm in one pass, and its gradients: values, threads, autograd, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import ENGINES, KERNELS, PLAIN, Engine, assert_same_bits, threads
from pairwise import pairwise
from torch import Tensor
from torch.library import opcheck

import mishkit as mk
from mishkit.activation import DTYPES
from mishkit.ops import norm as ops

# The last one has more rows than are added up in float, the one before it several parts.
SHAPES = [(1, 1), (2, 3, 7), (5, 31), (3, 32), (2, 2, 33), (9, 257), (70, 1000), (700, 24)]
EPSILON = 1e-5


class Operators:
    """The operators of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, *tensors: Tensor, epsilon: float = EPSILON, offset: float = 0.0) -> Any:
        name = "rms_norm" if len(tensors) == 2 else "rms_norm_backward"
        return self.body(name)(*tensors, epsilon, offset)

    def body(self, name: str) -> Callable[..., Any]:
        if self.engine == PLAIN:
            return {"rms_norm": ops.differentiable, "rms_norm_backward": ops._gradients}[name]
        operator: Callable[..., Any] = getattr(torch.ops.mishkit, name).default
        return operator


@pytest.fixture
def rms_norm(every_engine: Engine) -> Operators:
    return Operators(every_engine)


def tensors(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A gradient, x and a weight."""
    weight = torch.rand(shape[-1:]) + 0.5
    return torch.randn(shape).to(dtype), (3 * torch.randn(shape)).to(dtype), weight.to(dtype)


def exactly(
    grad: Tensor, x: Tensor, weight: Tensor, epsilon: float, offset: float
) -> tuple[Tensor, ...]:
    """In float64: the output and both gradients, as autograd has them."""
    wide = [t.double().requires_grad_() for t in (x, weight)]
    y = wide[0] / (wide[0].square().mean(-1, keepdim=True) + epsilon).sqrt() * (wide[1] + offset)
    return y.detach(), *torch.autograd.grad(y, wide, grad.double())


@pairwise(
    {
        "every_engine,dtype": [(e, d) for e in ENGINES for d in DTYPES],
        "shape": SHAPES,
        "epsilon": [1e-6, 0.5],
        "offset": [0.0, 1.0],
    }
)
def test_values(
    shape: tuple[int, ...], dtype: torch.dtype, epsilon: float, offset: float, rms_norm: Operators
) -> None:
    grad, x, weight = tensors(shape, dtype)
    y = rms_norm(x, weight, epsilon=epsilon, offset=offset)
    got = y, *rms_norm(grad, x, weight, epsilon=epsilon, offset=offset)
    want = exactly(grad, x, weight, epsilon, offset)
    normal, weights = exactly(grad, x, torch.ones_like(weight), epsilon, 0.0)[0], weight + offset
    terms = (
        want[0],
        weights * normal / x * grad,
        (grad.double() * normal).abs().sum_to_size(weight.shape),
    )
    precision = torch.finfo(dtype).eps
    for result, right, added in zip(got, want, terms, strict=True):
        assert result.dtype == dtype and result.shape == right.shape
        error = (result.double() - right).abs()
        # One rounding of the result, and several of float32 (float64) in what is added up.
        several = 4 * min(precision, torch.finfo(torch.float32).eps)
        assert bool((error <= precision * right.abs() + several * added.abs().max()).all())


@pairwise({"every_engine": KERNELS, "dtype": DTYPES})
def test_the_number_of_threads_changes_nothing(dtype: torch.dtype, rms_norm: Operators) -> None:
    grad, x, weight = tensors((300, 520), dtype)
    results = []
    for count in (1, 2, 5):
        with threads(count):
            results.append((rms_norm(x, weight), *rms_norm(grad, x, weight)))
    for others in results[1:]:
        for result, other in zip(results[0], others, strict=True):
            assert_same_bits(result, other)


def test_an_empty_input() -> None:
    x, weight = torch.empty(0, 5), torch.ones(5)
    assert ops.forward(x, weight, EPSILON, 0.0).shape == (0, 5)
    to_x, to_weight = torch.ops.mishkit.rms_norm_backward(x, x, weight, EPSILON, 0.0)
    assert to_x.shape == (0, 5) and torch.equal(to_weight, torch.zeros(5))


def test_autograd() -> None:
    _, x, weight = (t.double().requires_grad_() for t in tensors((3, 5), torch.float64))

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        y: Tensor = ops.apply(x, weight, EPSILON, 1.0)
        return y

    assert torch.autograd.gradcheck(norm, (x, weight))
    assert torch.autograd.gradgradcheck(norm, (x, weight))
    assert torch.autograd.gradgradcheck(lambda x: norm(x, weight.detach()), (x,))


def test_only_the_input_is_kept() -> None:
    _, x, weight = tensors((4, 64), torch.float32)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    with mk.KeptBytes() as kept:
        ops.apply(x, weight, EPSILON, 0.0)
    assert kept.total == x.nbytes


def test_a_weight_that_was_overwritten_is_refused() -> None:
    _, x, weight = tensors((4, 64), torch.float32)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = ops.apply(x, weight, EPSILON, 0.0)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"shape \[64\].* at version 1; expected version 0"):
        y.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_are_registered_right(dtype: torch.dtype) -> None:
    grad, x, weight = tensors((2, 3, 8), dtype)
    opcheck(torch.ops.mishkit.rms_norm.default, (x, weight, EPSILON, 0.0))
    opcheck(torch.ops.mishkit.rms_norm_backward.default, (grad, x, weight, EPSILON, 0.0))


@pytest.mark.skipif(not KERNELS, reason="no kernels here")
@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.ones(2, 4), torch.ones(3)),
        (torch.ones(2, 4), torch.ones(2, 4)),
        (torch.ones(2, 4), torch.ones(4, dtype=torch.float64)),
        (torch.ones(2, 4, dtype=torch.int32), torch.ones(4, dtype=torch.int32)),
        (torch.ones(4, 2).t(), torch.ones(4)),
        (torch.ones(2, 0), torch.ones(0)),
        (torch.ones(2, 4), torch.ones(8)[::2]),
    ],
    ids=["length", "dimensions", "dtypes", "integers", "strides", "no_columns", "gaps"],
)
def test_what_does_not_fit_is_refused(x: Tensor, weight: Tensor) -> None:
    with pytest.raises(RuntimeError, match="rms_norm: "):
        torch.ops.mishkit.rms_norm(x, weight, EPSILON, 0.0)
