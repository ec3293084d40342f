"""Shapes and strides: results laid out as torch would, no copy of what is dense, sides in order."""

from __future__ import annotations

import pytest
import torch
from common import (
    DENSE,
    EVERY_ENGINE,
    KERNELS,
    LAYOUTS,
    SCATTERED,
    TYPICAL,
    Case,
    Engine,
    assert_laid_out_like,
    assert_rounds,
    assert_same_bits,
    copies,
    every_case,
    from_output,
    laid_out,
    mostly_slow,
    typical_turning,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import pairwise
from torch import Tensor

from mishkit.activation import DTYPES
from mishkit.backends import torch as plain

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_layout_of_typical = pairwise(
    {"every_engine": EVERY_ENGINE, "case": TYPICAL, "layout": list(LAYOUTS)}
)
every_layout_of_mish = pairwise(
    {"every_engine": EVERY_ENGINE, "case": mostly_slow(TYPICAL, 1), "layout": list(LAYOUTS)}
)

# Other layouts for the gradient of a tensor; `sum` gives an expanded one.
GRADS = {
    "contiguous": lambda x: torch.randn(x.shape),
    "reversed": lambda x: torch.randn(x.shape[::-1]).permute(tuple(reversed(range(x.dim())))),
    "expanded": lambda x: torch.randn(()).expand(x.shape),
    "gaps": lambda x: torch.randn(*x.shape, 2)[..., 0],
}


@every_layout_of_typical
def test_results_are_laid_out_as_torchs(every_engine: Engine, case: Case, layout: str) -> None:
    x = laid_out(layout, torch.float32)
    dense = x.contiguous()
    y = every_engine.operator(case)(x)
    assert_laid_out_like(y, x)
    assert_rounds(y, case.exactly("f", dense))
    packed, side = every_engine.operator(case, "_packed")(x)
    assert_laid_out_like(packed, x)
    for make in GRADS.values():
        grad = make(x)
        for result in (
            every_engine.operator(case, "_backward")(grad, x),
            every_engine.operator(case, "_backward_packed")(grad, packed, side),
            *every_engine.operator(case, "_double_backward")(grad, grad, x),
        ):
            assert_laid_out_like(result, x)


@every_layout_of_mish
def test_gradients_do_not_depend_on_the_layout(
    every_engine: Engine, case: Case, layout: str
) -> None:
    x = laid_out(layout, torch.float32)
    dense = x.contiguous()
    _, dense_side = every_engine.operator(case, "_packed")(dense)
    for make in GRADS.values():
        grad = make(x)
        y, side = every_engine.operator(case, "_packed")(x)
        for ending, got, want in (
            ("_backward", (grad, x), (grad.contiguous(), dense)),
            ("_backward_packed", (grad, y, side), (grad.contiguous(), y.contiguous(), dense_side)),
            ("_double_backward", (grad, grad, x), (grad.contiguous(), grad.contiguous(), dense)),
        ):
            operator = every_engine.operator(case, ending)
            torch.testing.assert_close(operator(*got), operator(*want), rtol=1e-6, atol=1e-6)


# How sides are packed in each type of each instruction set is in test_values, bit by bit.
@pairwise(
    {
        "every_engine": EVERY_ENGINE,
        "case": [case for case in TYPICAL if case.turn is not None],
        "layout": list(LAYOUTS),
        "dtype": DTYPES,
    }
)
def test_sides_are_in_memory_order(
    every_engine: Engine, case: Case, layout: str, dtype: torch.dtype
) -> None:
    x = laid_out(layout, dtype)
    y, side = every_engine.operator(case, "_packed")(x)
    # Read back through the memory itself, not through the helpers under test.
    right = torch.empty_like(y).copy_(x.double() > case.turn)
    in_memory = torch.as_strided(right, (right.numel(),), (1,), 0)
    assert_same_bits(side, plain.pack(in_memory))
    out = torch.empty_like(y)
    assert_same_bits(every_engine.operator(case, "_packed_out")(x, out), side)


def test_packing_fills_up_with_zeros() -> None:
    assert plain.pack(torch.tensor([True])).tolist() == [1]
    assert plain.pack(torch.tensor([False] * 8 + [True, False, True])).tolist() == [0, 5]
    bits = torch.randn(1001) > 0
    assert torch.equal(plain.unpack(plain.pack(bits), 1001), bits)
    assert plain.pack(torch.empty(0, dtype=torch.bool)).numel() == 0


# ---- copies ----


@pairwise({"kernels": KERNELS, "case": TYPICAL, "layout": list(DENSE)})
def test_a_dense_layout_is_never_copied(kernels: Engine, case: Case, layout: str) -> None:
    x = laid_out(layout, torch.float32)
    y, side = kernels.operator(case, "_packed")(x)
    out, grad = torch.empty_like(x), torch.randn_like(x)
    assert copies(kernels.operator(case), x) == 0
    assert copies(kernels.operator(case, "_packed"), x) == 0
    assert copies(kernels.operator(case, "_out"), x, out) == 0
    assert copies(kernels.operator(case, "_backward"), grad, x) == 0
    assert copies(kernels.operator(case, "_backward_packed"), grad, y, side) == 0
    assert copies(kernels.operator(case, "_double_backward"), grad, grad, x) == 0


@pairwise(
    {
        "kernels": KERNELS,
        "case": TYPICAL,
        "layout": sorted(set(SCATTERED) - {"diagonal", "strided_row"}),
    }
)
def test_copies_are_noticed(kernels: Engine, case: Case, layout: str) -> None:
    """The control of the test above."""
    assert copies(kernels.operator(case), laid_out(layout, torch.float32)) > 0


# ---- anything ----


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Of any dtype, shape and strides that permuting, slicing and expanding can make."""
    dims = draw(st.integers(0, 5))
    sizes = [draw(st.integers(0, 5) | st.integers(1, 3)) for _ in range(dims)]
    steps = [draw(st.integers(1, 3)) for _ in range(dims)]
    starts = [draw(st.integers(0, 2)) for _ in range(dims)]
    whole = [start + size * step for start, size, step in zip(starts, sizes, steps, strict=True)]
    dtype = draw(st.sampled_from(DTYPES))
    x = torch.randn(whole, generator=torch.Generator().manual_seed(dims)).mul(3).to(dtype)
    for dim in range(dims):
        x = x.narrow(dim, starts[dim], sizes[dim] * steps[dim])
        x = x[(slice(None),) * dim + (slice(None, None, steps[dim]),)]
    x = x.permute(tuple(draw(st.permutations(range(dims)))))
    for dim in range(dims):
        if x.shape[dim] == 1 and draw(st.booleans()):
            x = x.expand([3 if d == dim else -1 for d in range(dims)])
    return x


@settings(max_examples=30, deadline=None, derandomize=True)
@given(x=tensors(), make=st.sampled_from(list(GRADS.values())))
@every_case
def test_any_tensor(case: Case, x: Tensor, make) -> None:
    leaf = x.detach().requires_grad_()
    grad = make(x).to(x.dtype)
    y = case.call(leaf)
    assert_laid_out_like(y, x)
    assert_rounds(y.detach(), case.exactly("f", x))
    (got,) = torch.autograd.grad(y, leaf, grad)
    want = grad.double() * case.exactly("df", x)
    assert_rounds(got, want)
    assert got.shape == x.shape

    again, side = getattr(torch.ops.mishkit, case.a.name + "_packed")(x, *case.parameters)
    assert_same_bits(again, y.detach())
    _, plain_side = plain.forward_packed(case.a, x, *case.parameters)
    assert_same_bits(side, plain_side)
    (from_y,) = torch.autograd.grad(case.call(leaf, save="output"), leaf, grad)
    decoded = plain.backward_packed(case.a, grad, again, side, *case.parameters)
    assert_rounds(from_y, decoded.double(), extra=1e-5 + torch.finfo(x.dtype).eps * 8)


@from_output
@every_layout
@typical_turning
def test_gradients_from_the_output_by_autograd(case: Case, layout: str, options: dict) -> None:
    leaf = laid_out(layout, torch.float64).requires_grad_()
    x = leaf * 1  # dense, in the layout that torch gives it
    grad = torch.randn(leaf.shape, dtype=torch.float64)
    (got,) = torch.autograd.grad(case.call(x, **options), leaf, grad)
    torch.testing.assert_close(got, grad * case.exactly("df", leaf.detach()), rtol=0, atol=1e-6)
