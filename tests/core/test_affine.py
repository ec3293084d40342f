"""f(scale·x + shift) in one pass, and its gradient: the bits of a norm followed by the function."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from common import (
    DEFAULTS,
    EVERY_ENGINE,
    KERNELS,
    OTHERS,
    Case,
    Engine,
    _on_gpu,
    assert_laid_out_like,
    assert_same_bits,
    threads,
)
from pairwise import pairwise
from torch import Tensor
from torch.library import opcheck

from mishkit.activation import DTYPES
from mishkit.ops import affine as ops
from mishkit.ops.blend import function

CASES = {str(case): case for case in DEFAULTS + OTHERS}
SHAPES = {
    "runs": (2, 5, 9, 9),
    "short_runs": (3, 40, 5, 5),
    "shorter_than_a_block": (4, 3, 2, 1),
    "rows": (70, 33),
    "one_channel": (3, 1, 7, 11),
    "many_blocks": (2, 3, 40, 41),
    "sequences": (2, 24, 130),
}
Layout = Callable[[Tensor], Tensor]
LAYOUTS: dict[str, Layout] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "samples_last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "with_gaps": lambda x: x.repeat_interleave(2, 0)[::2],
}


class Operators:
    """The operators of an engine; `f` is None or a case."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, case: Case | None, *tensors: Tensor) -> Tensor:
        name = "affine" if len(tensors) == 3 else "affine_backward"
        numbers_of = function(case.a.name, *case.parameters) if case else ops.NO_FUNCTION
        return self.body(name)(*tensors, *numbers_of)

    def body(self, name: str) -> Callable[..., Tensor]:
        if self.engine.name == "plain":
            return ops._BODIES[name]
        if self.engine.name == "triton":
            return _on_gpu(functools.partial(ops._on_gpu, name))
        return getattr(torch.ops.mishkit, name).default


@pytest.fixture
def affine(every_engine: Engine) -> Operators:
    return Operators(every_engine)


def tensor(shape: tuple[int, ...], layout: Layout, dtype: torch.dtype) -> Tensor:
    return layout(torch.randn(shape).to(dtype))


def numbers(x: Tensor, by_sample: bool = False) -> tuple[Tensor, Tensor]:
    """A scale and a shift."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = x.shape[:2] if by_sample else x.shape[1:2]
    return torch.randn(shape, dtype=wide) + 0.5, torch.randn(shape, dtype=wide)


def scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale·x + shift by torch, rounded once more to x's dtype."""
    shape = (*scale.shape, *(1,) * (x.dim() - scale.dim() - (scale.dim() == 1)))
    wide = x if x.dtype == torch.float64 else x.float()
    return torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(x.dtype)


@pairwise(
    {
        "every_engine,dtype": [(e, d) for e in EVERY_ENGINE for d in DTYPES],
        "shape": SHAPES,
        "layout": LAYOUTS,
        "by_sample": [False, True],
    },
    apart=[{"by_sample": True, "layout": LAYOUTS["samples_last"]}],
)
def test_the_affine_alone(
    shape: tuple[int, ...], layout: Layout, by_sample: bool, dtype: torch.dtype, affine: Operators
) -> None:
    x = tensor(shape, layout, dtype)
    scale, shift = numbers(x, by_sample)
    got, want = affine(None, x, scale, shift), scaled(x, scale, shift)
    assert_laid_out_like(got, x)
    if affine.engine.name == "baseline":  # without a fused multiply-add it rounds twice
        torch.testing.assert_close(got, want)
    else:
        assert_same_bits(got, want)


@pairwise(
    {
        "every_engine,dtype": [(e, d) for e in EVERY_ENGINE for d in DTYPES],
        "case": CASES,
        "shape": SHAPES,
        "layout": LAYOUTS,
    }
)
def test_followed_by_a_function(
    case: Case, shape: tuple[int, ...], layout: Layout, dtype: torch.dtype, affine: Operators
) -> None:
    """The bits of the function's own operators, which see the affine's result."""
    x = tensor(shape, layout, dtype)
    scale, shift = numbers(x)
    grad = torch.randn(x.shape).to(dtype)
    z = affine(None, x, scale, shift)
    y, gradient = affine(case, x, scale, shift), affine(case, grad, x, scale, shift)
    engine = affine.engine
    assert_same_bits(y, engine.operator(case)(z))
    assert_same_bits(gradient, engine.operator(case, "_backward")(grad, z))
    assert_laid_out_like(y, x)
    assert_laid_out_like(gradient, x)


@pairwise(
    {
        "every_engine,dtype": [(e, d) for e in EVERY_ENGINE for d in DTYPES],
        "shape": {"narrow": (5, 7), "wide": (3, 2, 1030), "one_row": (1, 64), "one_column": (9, 1)},
    }
)
def test_layer_norm_again(shape: tuple[int, ...], dtype: torch.dtype, affine: Operators) -> None:
    x = torch.randn(shape).to(dtype)
    wide = x if dtype == torch.float64 else x.float()
    rows, columns = x.numel() // shape[-1], shape[-1]
    mean, rstd = torch.randn(2, rows, 1, dtype=wide.dtype)
    weight, bias = torch.randn(2, columns, dtype=wide.dtype)
    got = affine.body("layer_norm_again")(x, mean, rstd, weight, bias)
    want = torch.addcmul(bias, (wide.view(rows, columns) - mean) * rstd, weight)
    want = want.view(shape).to(dtype)
    if affine.engine.name == "baseline":
        torch.testing.assert_close(got, want)
    else:
        assert_same_bits(got, want)


@pytest.mark.parametrize("by_sample", [False, True])
def test_any_number_of_threads(by_sample: bool, kernels: Engine) -> None:
    """Parts begin in the midst of runs, rows and samples."""
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](torch.randn(5, 37, 31, 29))
        scale, shift = numbers(x, by_sample)
        results = []
        for count in (1, 2, 3):
            with threads(count):
                results.append(Operators(kernels)(DEFAULTS[0], x, scale, shift))
        assert_same_bits(results[1], results[0])
        assert_same_bits(results[2], results[0])
    rows = torch.randn(999, 61)
    weight, mean = torch.randn(61), torch.randn(999)
    many = Operators(kernels).body("layer_norm_again")(rows, mean, mean, weight, weight)
    with threads(1):
        assert_same_bits(many, torch.ops.mishkit.layer_norm_again(rows, mean, mean, weight, weight))


def test_nan_and_infinity(affine: Operators) -> None:
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0] * 20).view(2, 4, 10)
    scale, shift = torch.ones(4), torch.zeros(4)
    y = affine(DEFAULTS[0], x, scale, shift)
    assert_same_bits(y, affine.engine.operator(DEFAULTS[0])(x))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 4), (2, 3, 0)], ids=str)
def test_no_elements(shape: tuple[int, ...], affine: Operators) -> None:
    x = torch.randn(shape)
    scale, shift = torch.ones(shape[1]), torch.ones(shape[1])
    assert affine(DEFAULTS[0], x, scale, shift).shape == shape
    assert affine(DEFAULTS[0], x, x, scale, shift).shape == shape


def test_fakes_and_schemas() -> None:
    x, row = torch.randn(2, 3, 4), torch.randn(3)
    mish = function("mish")
    checks = ("test_schema", "test_faketensor")
    opcheck(torch.ops.mishkit.affine.default, (x, row, row, *mish), test_utils=checks)
    grad = torch.randn(4, 3, 2).permute(2, 1, 0)  # laid out in another way than x
    backward = torch.ops.mishkit.affine_backward.default
    opcheck(backward, (grad, x, row, row, *mish), test_utils=checks)
    four = torch.randn(4)
    of_norm = (x, torch.randn(6), torch.randn(6), four, four)
    opcheck(torch.ops.mishkit.layer_norm_again.default, of_norm, test_utils=checks)


@pytest.mark.skipif(not KERNELS, reason="the kernels were not built")
def test_misuse() -> None:
    x, row, f = torch.randn(2, 3, 4), torch.randn(3), function("mish")
    affine, backward = torch.ops.mishkit.affine, torch.ops.mishkit.affine_backward
    again = torch.ops.mishkit.layer_norm_again
    wrong = {
        "float32, float64, bfloat16 or float16": lambda: affine(x.int(), row, row, *f),
        "there is no such function": lambda: affine(x, row, row, 99, *f[1:]),
        "there is no such": lambda: backward(x, x, row, row, *ops.NO_FUNCTION),
        "a number per channel": lambda: affine(x, torch.randn(4), torch.randn(4), *f),
        "per sample and channel": lambda: affine(x, torch.randn(3, 3), torch.randn(3, 3), *f),
        "or per sample": lambda: affine(torch.randn(3), row, row, *f),
        "in float32 or float64": lambda: affine(x, row.double(), row.double(), *f),
        "must follow each other": lambda: affine(
            x.movedim(0, -1).contiguous().movedim(-1, 0), x[..., 0], x[..., 0], *f
        ),
        "differ in dtype or shape": lambda: backward(x[:1], x, row, row, *f),
        "as many numbers as a row": lambda: again(x, row, row, torch.randn(5), torch.randn(5)),
        "of the right count": lambda: again(x, row, row, torch.randn(4), torch.randn(4)),
        "must be contiguous": lambda: again(x.mT, row, row, row, row),
    }
    for message, call in wrong.items():
        with pytest.raises(RuntimeError, match=message):
            call()
