"""Parameters that are tensors: of one number, or of one a channel; their gradients, everywhere."""

from __future__ import annotations

import copy
import io
import itertools
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from common import (
    DEFAULTS,
    DENSE,
    ENGINES,
    EVERY_ENGINE,
    KERNELS,
    LAYOUTS,
    OTHERS,
    TRITON,
    TURNLESS,
    Case,
    Engine,
    assert_laid_out_like,
    assert_rounds,
    assert_same_bits,
    copies,
    every_dtype,
    half_dtypes,
    laid_out,
    mostly_slow,
    name_of,
    threads,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import pairwise
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

import mishkit
from mishkit.activation import DTYPES
from mishkit.backends import torch as plain
from mishkit.ops.functions import TRAINED_SCHEMAS

TRAINED = [case for case in DEFAULTS + OTHERS if case.a.trainable]
ANY_SHAPE = TRAINED + [case for case in TURNLESS if case.a.trainable]
every_trained = pytest.mark.parametrize("case", TRAINED, ids=str)
FUNCTIONS = [case for case in DEFAULTS if case.a.trainable]
every_function = pytest.mark.parametrize("case", FUNCTIONS, ids=str)
# How many numbers a parameter has: one, in two ways to write it, or one a channel.
SIZES: dict[str, Callable[[int], tuple[int, ...]]] = {
    "number": lambda channels: (),
    "row": lambda channels: (1,),
    "channels": lambda channels: (channels,),
}
every_size = pytest.mark.parametrize("size", SIZES)
WIDE_LAYOUTS = [
    name
    for name, shape in ((name, laid_out(name, torch.float32).shape) for name in LAYOUTS)
    if len(shape) >= 2 and shape[1] > 0
]


def wide(dtype: torch.dtype) -> torch.dtype:
    """What the parameters' gradients are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tensors_of(
    case: Case, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """The case's parameters as tensors, different in every channel."""
    spread = torch.linspace(0.6, 1.3, max(1, shape[0]) if shape else 1).double()
    if spread.numel() == 1:
        spread.fill_(1)
    return [(v * spread).reshape(shape).to(dtype).requires_grad_() for v in case.parameters]


def exactly(case: Case, x: Tensor, parameters: list[Tensor]) -> Tensor:
    """The formula in float64, with the channels along dimension 1."""
    by_channel = [
        p.double().reshape(-1, *(1,) * (x.dim() - 2)) if p.numel() > 1 else p.double().reshape(())
        for p in parameters
    ]
    return case.a.f(x.double(), *by_channel)


def exact_gradients(
    case: Case, x: Tensor, parameters: list[Tensor], weight: Tensor
) -> tuple[Tensor, ...]:
    """In float64: of the input, and of the parameters."""
    leaves = [t.detach().double().requires_grad_() for t in (x, *parameters)]
    y = exactly(case, leaves[0], leaves[1:])
    return torch.autograd.grad(y, leaves, weight.double(), materialize_grads=True)


def sum_sizes(case: Case, x: Tensor, parameters: list[Tensor], weight: Tensor) -> list[Tensor]:
    """Σ|g|·(|∂f/∂p| + |x|): what the error of a parameter's gradient is measured by."""
    stacked = torch.stack([p.detach().double().reshape(-1) for p in parameters])
    x, g = x.detach().double(), weight.double().abs()
    assert case.a.dp is not None
    others = [d for d in range(x.dim()) if d != 1 or stacked.shape[1] == 1]
    derivatives = case.a.dp(x, *plain.by_channel(stacked, x))
    return [
        (g * (d.abs() + x.abs())).sum(others).reshape(p.shape)
        for d, p in zip(derivatives, parameters, strict=True)
    ]


SUM_ERROR = {torch.float64: 4e-15, torch.float32: 4e-6}
"""Of a sum in this type, in the unit above: equal terms make roundings add up."""


def assert_gradients(
    case: Case, got: list[Tensor], x: Tensor, parameters: list[Tensor], weight: Tensor
) -> None:
    """Of the input and then of the parameters."""
    want = exact_gradients(case, x, parameters, weight)
    assert_rounds(got[0].detach(), want[0])
    sizes = sum_sizes(case, x, parameters, weight)
    error = SUM_ERROR[wide(x.dtype)]
    for g, w, p, size in zip(got[1:], want[1:], parameters, sizes, strict=True):
        assert g.shape == p.shape and g.dtype == p.dtype
        rounding = torch.finfo(p.dtype).eps * w.abs()
        assert ((g.detach().double() - w).abs() <= error * size + rounding + 1e-30).all(), (g, w)


def call(case: Case, x: Tensor, parameters: list[Any], **options: Any) -> Tensor:
    return getattr(mishkit, case.a.name)(x, *parameters, **options)


def stacked(parameters: list[Tensor], dtype: torch.dtype) -> Tensor:
    """As the operators take them."""
    return torch.stack([p.detach().to(wide(dtype)).reshape(-1) for p in parameters])


# ---- the operators ----


# The function, the engine and the type make the kernel, of which each is code of its own; how many
# numbers there are and how large each dimension is choose the way it goes through memory.
@pairwise(
    {
        "every_engine,dtype": list(itertools.product(EVERY_ENGINE, DTYPES)),
        "case": ANY_SHAPE,
        "size,shape": list(
            itertools.product(
                ["row", "channels"],
                [(7, 5), (300, 3), (3, 70), (2, 3, 1000), (5, 1, 9), (0, 4)],
            )
        ),
    }
)
def test_operators(
    every_engine: Engine, case: Case, dtype: torch.dtype, size: str, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape).mul(3).to(dtype)
    weight = torch.randn(shape).to(dtype)
    parameters = tensors_of(case, SIZES[size](shape[1]), wide(dtype))
    rows = stacked(parameters, dtype)
    y = every_engine.operator(case, "_trained")(x, rows)
    assert y.dtype == dtype
    assert_rounds(y, exactly(case, x, parameters).detach())
    to_x, to_rows = every_engine.operator(case, "_trained_backward")(weight, x, rows)
    assert to_x.dtype == dtype and to_rows.dtype == rows.dtype and to_rows.shape == rows.shape
    by_parameter = [row.reshape(p.shape) for row, p in zip(to_rows, parameters, strict=True)]
    assert_gradients(case, [to_x, *by_parameter], x, parameters, weight)


@pairwise({"every_engine": EVERY_ENGINE, "case": TRAINED, "layout": WIDE_LAYOUTS})
def test_layouts(every_engine: Engine, case: Case, layout: str) -> None:
    """Channels lie anywhere in memory; the gradient comes in any layout too."""
    x = laid_out(layout, torch.float32)
    parameters = tensors_of(case, (x.shape[1],))
    rows = stacked(parameters, x.dtype)
    y = every_engine.operator(case, "_trained")(x, rows)
    assert_laid_out_like(y, x)
    assert_rounds(y, exactly(case, x, parameters).detach())
    backward = every_engine.operator(case, "_trained_backward")
    flipped = tuple(reversed(range(x.dim())))
    for weight in (
        torch.randn_like(x),
        torch.randn(x.shape[::-1]).permute(flipped),
        torch.randn(()).expand(x.shape),
    ):
        to_x, to_rows = backward(weight, x, rows)
        assert_laid_out_like(to_x, x)
        by_parameter = [row.reshape(p.shape) for row, p in zip(to_rows, parameters, strict=True)]
        assert_gradients(case, [to_x, *by_parameter], x, parameters, weight)


@pairwise({"every_engine": EVERY_ENGINE, "case": ANY_SHAPE, "end": [-torch.inf, torch.inf]})
def test_infinite_inputs(every_engine: Engine, case: Case, end: float) -> None:
    """The limits, or what is too large to be finite; no NaN, which would spoil whole sums."""
    x = torch.full((40,), end)
    rows = stacked(tensors_of(case, (1,)), x.dtype)
    to_x, to_rows = every_engine.operator(case, "_trained_backward")(torch.ones(40), x, rows)
    torch.testing.assert_close(to_x.double(), case.exactly("df", x), rtol=1e-6, atol=1e-6)
    assert case.a.dp is not None
    for got, d in zip(to_rows[:, 0], case.a.dp(x.double(), *case.parameters), strict=True):
        want = d.sum()
        if want.isinf():
            assert got.abs() > 1e30 and got.sign() == want.sign()
        else:
            torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-5)


@pairwise(
    {
        "kernels": KERNELS,
        "case": FUNCTIONS,
        "layout": [name for name in WIDE_LAYOUTS if name in DENSE],
    }
)
def test_a_dense_layout_is_never_copied(kernels: Engine, case: Case, layout: str) -> None:
    x = laid_out(layout, torch.float32)
    rows, weight = stacked(tensors_of(case, (x.shape[1],)), x.dtype), torch.randn_like(x)
    assert copies(kernels.operator(case, "_trained"), x, rows) == 0
    assert copies(kernels.operator(case, "_trained_backward"), weight, x, rows) == 0


@pairwise(
    {
        "every_engine": [
            *ENGINES,
            # The interpreter takes long.
            *(
                pytest.param(e, id=str(e), marks=(pytest.mark.gpu, pytest.mark.slow))
                for e in TRITON
            ),
        ],
        "case": mostly_slow(FUNCTIONS, FUNCTIONS[:1]),
        "layout": ["contiguous", "channels_last", "few_channels", "row"],
    }
)
def test_large_sums_keep_their_digits(every_engine: Engine, case: Case, layout: str) -> None:
    """A million times the same number: one float32 after the other would lose three digits."""
    # Triton's interpreter is slow, and its kernels sum in few and short steps.
    batch = 8 if every_engine not in TRITON or torch.cuda.is_available() else 1
    x = torch.full((batch, 128, 32, 33), 0.7)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout != "contiguous":
        x = x.reshape(-1, 3 if layout == "few_channels" else x.numel())
    channels = x.shape[1] if layout != "row" else 1
    parameters = tensors_of(case, (channels,))
    rows = stacked(parameters, x.dtype)
    _, got = every_engine.operator(case, "_trained_backward")(torch.full_like(x, 0.1), x, rows)
    one, weight = torch.full((1, channels), 0.7), torch.full((1, channels), 0.1)
    wants = exact_gradients(case, one, parameters, weight)[1:]
    sizes = sum_sizes(case, one, parameters, weight)
    count = x.numel() // channels
    for row, want, size in zip(got, wants, sizes, strict=True):
        assert ((row.double() - count * want).abs() <= SUM_ERROR[x.dtype] * count * size).all()


@pytest.mark.skipif(not KERNELS, reason="torch's own sums depend on its threads")
@pairwise(
    {
        "case": FUNCTIONS,
        "dtype": DTYPES,
        "shape": [(1 << 20,), (64, 3, 7000), (5000, 300), (3, 9, 40, 900)],
    }
)
def test_threads_change_nothing(case: Case, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    channels = shape[1] if len(shape) > 1 else 1
    rows = stacked(tensors_of(case, (channels,)), dtype)
    results = []
    for count in (1, 2, 3):
        with threads(count):
            operator = Engine("best").operator(case, "_trained_backward")
            results.append(
                (*operator(weight, x, rows), Engine("best").operator(case, "_trained")(x, rows))
            )
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert_same_bits(got, want)


@pairwise(
    {
        "case": TRAINED,
        "ending": list(TRAINED_SCHEMAS),
        "size": ["row", "channels"],
        "layout": ["contiguous", "channels_last", "columns"],
    }
)
def test_opcheck(case: Case, ending: str, size: str, layout: str) -> None:
    x = laid_out(layout, torch.float32)
    rows = stacked(tensors_of(case, SIZES[size](x.shape[1])), x.dtype)
    arguments = (x, rows) if ending == "_trained" else (torch.randn(x.shape), x, rows)
    opcheck(getattr(torch.ops.mishkit, case.a.name + ending).default, arguments)


@every_function
def test_operators_refuse_what_does_not_fit(kernels: Engine, case: Case) -> None:
    x = torch.randn(4, 3)
    rows = stacked(tensors_of(case, (3,)), x.dtype)
    wrong = [rows.double(), rows[:, :2], rows[0], torch.cat([rows, rows]), rows.bfloat16()]
    for bad in wrong:
        with pytest.raises(RuntimeError, match=rf"mishkit\.{case.a.name}: the parameters must be"):
            kernels.operator(case, "_trained")(x, bad)
        with pytest.raises(RuntimeError, match=rf"mishkit\.{case.a.name}: the parameters must be"):
            kernels.operator(case, "_trained_backward")(x, x, bad)


# ---- the public call ----


def shapes_of(size: str) -> list[tuple[int, ...]]:
    return [(4, 3), (2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 3, 2)] + (
        [(), (7,)] if size != "channels" else []
    )


@every_dtype
@every_trained
@every_size
def test_values_and_gradients(case: Case, dtype: torch.dtype, size: str) -> None:
    for shape in shapes_of(size):
        x = torch.randn(shape).mul(3).to(dtype).requires_grad_()
        parameters = tensors_of(case, SIZES[size](3), wide(dtype))
        y = call(case, x, parameters)
        assert y.dtype == dtype and y.shape == x.shape
        assert_rounds(y.detach(), exactly(case, x, parameters).detach())
        weight = torch.randn(shape).to(dtype)
        got = list(torch.autograd.grad(y, [x, *parameters], weight))
        assert_gradients(case, got, x, parameters, weight)
        with torch.no_grad():
            assert_same_bits(call(case, x, parameters), y.detach())


@every_trained
def test_one_number_is_a_fixed_parameter(case: Case) -> None:
    """In bits: the forward pass is the same."""
    x = torch.randn(41)
    parameters = tensors_of(case, ())
    fixed = [p.item() for p in parameters]
    assert_same_bits(call(case, x, parameters).detach(), call(case, x, fixed))


@every_trained
@every_size
def test_numbers_and_tensors_mix(case: Case, size: str) -> None:
    """Each parameter a number in turn, or a tensor of another shape or dtype."""
    x = torch.randn(4, 3, 5)
    weight = torch.randn_like(x)
    every = tensors_of(case, SIZES[size](3))
    for i, instead in enumerate(case.parameters):
        for other in (
            instead,
            torch.tensor([instead], requires_grad=True),
            torch.full((3,), instead, dtype=torch.float64, requires_grad=True),
            torch.tensor(instead, dtype=torch.bfloat16, requires_grad=True),
        ):
            given = [*every[:i], other, *every[i + 1 :]]
            trained = [p for p in given if isinstance(p, Tensor)]
            y = call(case, x, given)
            if not trained:  # one parameter, and that a number
                assert_same_bits(y, call(case, x, [instead]))
                continue
            got = torch.autograd.grad(y, trained, weight)
            full = [torch.as_tensor(p, dtype=torch.float32) for p in given]
            want = exact_gradients(case, x, full, weight)[1:]
            by_tensor = [w for w, p in zip(want, given, strict=True) if isinstance(p, Tensor)]
            for g, w, p in zip(got, by_tensor, trained, strict=True):
                assert g.shape == p.shape and g.dtype == p.dtype
                close = max(1e-4, 2 * torch.finfo(p.dtype).eps)
                torch.testing.assert_close(g.double(), w.reshape(g.shape), rtol=close, atol=1e-4)


@half_dtypes
@every_trained
@every_size
def test_parameters_of_16_bits(case: Case, dtype: torch.dtype, size: str) -> None:
    """They count for what they are, are summed in float32, and their gradients are rounded once."""
    x = torch.randn(6, 3, 50).to(dtype).requires_grad_()
    parameters = tensors_of(case, SIZES[size](3), dtype)
    weight = torch.randn(x.shape).to(dtype)
    y = call(case, x, parameters)
    assert_rounds(y.detach(), exactly(case, x, parameters).detach())
    got = list(torch.autograd.grad(y, [x, *parameters], weight))
    assert_gradients(case, got, x, parameters, weight)


@every_trained
def test_only_some_need_gradients(case: Case) -> None:
    x, parameters = torch.randn(4, 3), tensors_of(case, (3,))
    want = torch.autograd.grad(call(case, x.requires_grad_(), parameters).sum(), [x, *parameters])
    for i, leaf in enumerate((x, *parameters)):
        for t in (x, *parameters):
            t.requires_grad_(t is leaf)
        call(case, x, parameters).sum().backward()
        assert_same_bits(leaf.grad, want[i])
        assert all(t.grad is None for t in (x, *parameters) if t is not leaf)
        leaf.grad = None


@every_trained
@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0), (0, 3, 4, 4)], ids=str)
@every_size
def test_nothing(case: Case, shape: tuple[int, ...], size: str) -> None:
    x = torch.randn(shape, requires_grad=True)
    parameters = tensors_of(case, SIZES[size](3))
    y = call(case, x, parameters)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape
    assert all((p.grad == 0).all() and p.grad.shape == p.shape for p in parameters)


@every_trained
@every_size
def test_in_place_and_out_without_gradients(case: Case, size: str) -> None:
    x, parameters = torch.randn(4, 3, 5), tensors_of(case, SIZES[size](3))
    want = call(case, x, parameters).detach()
    with torch.no_grad():
        out, over = torch.empty_like(x), x.clone()
        assert call(case, x, parameters, out=out) is out
        assert call(case, over, parameters, inplace=True) is over
    assert_same_bits(out, want)
    assert_same_bits(over, want)
    frozen = [p.detach() for p in parameters]
    assert call(case, over.copy_(x), frozen, inplace=True) is over
    assert_same_bits(over, want)


@every_trained
def test_a_parameter_that_is_no_number_shows(case: Case) -> None:
    """Training that has gone wrong must not look as if it went on."""
    x = torch.linspace(-50, 50, 101).requires_grad_()
    for i in range(len(case.parameters)):
        for size in ((), (1,)):
            parameters = tensors_of(case, size)
            with torch.no_grad():
                parameters[i].fill_(torch.nan)
            y = call(case, x[x != 0], parameters)
            assert y.isnan().all()
            gradients = torch.autograd.grad(y.sum(), parameters)
            assert any(gradient.isnan().any() for gradient in gradients)


@every_trained
def test_overwriting_the_input_is_caught(case: Case) -> None:
    x = torch.randn(4, 3, requires_grad=True) * 1
    y = call(case, x, tensors_of(case, (3,)))
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every_trained
def test_a_step_before_backward(case: Case) -> None:
    """The values of the forward pass count."""
    x, parameters = torch.randn(4, 3), tensors_of(case, (3,))
    want = torch.autograd.grad(call(case, x, parameters).sum(), parameters)
    y = call(case, x, parameters)
    with torch.no_grad():
        for p in parameters:
            p.mul_(2)
    for got, w in zip(torch.autograd.grad(y.sum(), parameters), want, strict=True):
        assert_same_bits(got, w)


@st.composite
def inputs_and_sizes(draw: st.DrawFn) -> tuple[Tensor, str]:
    """Any dense or sliced tensor of 2 to 5 dimensions, in any order of memory."""
    dims = draw(st.integers(2, 5))
    shape = [draw(st.integers(1, 6)) for _ in range(dims)]
    dtype = draw(st.sampled_from(DTYPES))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(dims)).mul(3).to(dtype)
    x = x.permute(tuple(draw(st.permutations(range(dims)))))
    if draw(st.booleans()):
        x = torch.cat([x, x], -1)[..., ::2]
    return x, draw(st.sampled_from(list(SIZES)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn=inputs_and_sizes())
@every_trained
def test_any_tensor(case: Case, drawn: tuple[Tensor, str]) -> None:
    x, size = drawn[0].detach().requires_grad_(), drawn[1]
    parameters = tensors_of(case, SIZES[size](x.shape[1]), wide(x.dtype))
    weight = torch.randn(x.shape).to(x.dtype)
    y = call(case, x, parameters)
    assert_rounds(y.detach(), exactly(case, x, parameters).detach())
    got = list(torch.autograd.grad(y, [x, *parameters], weight))
    assert_gradients(case, got, x, parameters, weight)


# ---- derivatives of any order, in any mode ----


def smooth_points() -> Tensor:
    x = [-5.1, -2.7, -1.7, -1.05, -0.6, -0.2, 0.3, 0.9, 1.6, 4.3, 0.0, 7.7]
    return torch.tensor(x, dtype=torch.float64).reshape(2, 3, 2).requires_grad_()


def doubles(case: Case, size: str) -> list[Tensor]:
    return tensors_of(case, SIZES[size](3), torch.float64)


@every_trained
@every_size
def test_gradcheck(case: Case, size: str) -> None:
    inputs = (smooth_points(), *doubles(case, size))
    f = lambda x, *p: call(case, x, list(p))  # noqa: E731
    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, inputs, check_batched_grad=True)


@every_trained
@every_size
def test_double_backward(case: Case, size: str) -> None:
    """A penalty on gradients, towards the input and towards the parameters."""

    def penalty(f: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
        first = torch.autograd.grad(f(*leaves).square().sum(), leaves, create_graph=True)
        total = sum(g.square().sum() for g in first)
        return list(torch.autograd.grad(total, leaves))

    leaves = [smooth_points(), *doubles(case, size)]
    got = penalty(lambda x, *p: call(case, x, list(p)), leaves)
    want = penalty(lambda x, *p: exactly(case, x, list(p)), leaves)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9)


@every_trained
@every_size
def test_transforms(case: Case, size: str) -> None:
    x = smooth_points().detach()
    values = tuple(p.detach() for p in doubles(case, size))

    def ours(x: Tensor, *p: Tensor) -> Tensor:
        return call(case, x, list(p))

    def formula(x: Tensor, *p: Tensor) -> Tensor:
        return exactly(case, x, list(p))

    everything = tuple(range(1 + len(values)))
    for transform in (
        lambda f: grad(lambda *t: f(*t).sin().sum(), argnums=everything)(x, *values),
        lambda f: jacrev(f, argnums=everything)(x, *values),
        lambda f: jacfwd(f, argnums=everything)(x, *values),
        lambda f: jvp(f, (x, *values), (x.cos(), *(v.sin() for v in values))),
        lambda f: hessian(lambda *t: f(*t).sin().sum(), argnums=everything)(x, *values),
        lambda f: vmap(f, in_dims=(0, *(None for _ in values)))(torch.stack([x, -x]), *values),
        lambda f: vmap(f, in_dims=(None, *(0 for _ in values)))(
            x, *(torch.stack([v, 0.5 * v, 2 * v]) for v in values)
        ),
        lambda f: vmap(grad(lambda *t: f(*t).sum(), argnums=everything))(
            torch.stack([x, -x]), *(torch.stack([v, 0.5 * v]) for v in values)
        ),
    ):
        got, want = transform(ours), transform(formula)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@every_trained
@every_size
def test_dual_tensors_keep_their_tangents(case: Case, size: str) -> None:
    x, parameters = smooth_points().detach(), [p.detach() for p in doubles(case, size)]
    want = jvp(
        lambda *p: exactly(case, x, list(p)), tuple(parameters), tuple(map(torch.cos, parameters))
    )
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, p.cos()) for p in parameters]
        for inputs_grad in (False, True):
            y = call(case, x.clone().requires_grad_(inputs_grad), duals)
            primal, tangent = forward_ad.unpack_dual(y)
            assert tangent is not None
            torch.testing.assert_close((primal, tangent), want)


# ---- torch.compile and torch.export ----


def assert_compiled(case: Case, size: str, shapes: list[tuple[int, ...]]) -> None:
    f = lambda x, *p: call(case, x * 1.5, list(p)) + 1  # noqa: E731
    dynamic = len(shapes) > 1
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for i, shape in enumerate(shapes):
        leaves = [torch.randn(shape, requires_grad=True), *tensors_of(case, SIZES[size](3))]
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            y = compiled(*leaves)
        want = f(*leaves)
        torch.testing.assert_close(y, want)
        got = torch.autograd.grad(y.sum(), leaves)
        for g, w in zip(got, torch.autograd.grad(want.sum(), leaves), strict=True):
            torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


@every_function
@every_size
@pytest.mark.usefixtures("fresh_compiler")
def test_compile(case: Case, size: str) -> None:
    assert_compiled(case, size, [(4, 3, 6)])


@every_function
@pytest.mark.usefixtures("fresh_compiler")
def test_compile_for_any_size(case: Case) -> None:
    assert_compiled(case, "channels", [(4, 3, 6), (7, 3, 5)])


@every_function
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.usefixtures("fresh_compiler")
def test_export_has_torchs_operators_alone(case: Case, strict: bool, channels: int) -> None:
    module = make(case, trainable=True, num_parameters=channels)
    batch = torch.export.Dim("batch", min=2, max=64)
    x = torch.randn(4, 8)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},), strict=strict)
    called = {n.target for n in program.graph.nodes if n.op == "call_function"}
    assert {target.namespace for target in called - {operator.getitem}} == {"aten"}
    x = torch.randn(7, 8)
    torch.testing.assert_close(program.module()(x), module(x))


# ---- the modules ----


def make(case: Case, **options: Any) -> Any:
    named = {p.name: v for p, v in zip(case.a.parameters, case.parameters, strict=True)}
    return getattr(mishkit, case.a.module_name)(**named, **options)


@every_trained
@pytest.mark.parametrize("channels", [1, 3])
def test_a_trained_module(case: Case, channels: int) -> None:
    module = make(case, trainable=True, num_parameters=channels)
    names = [p.name for p in case.a.parameters]
    assert [name for name, _ in module.named_parameters()] == names
    for name, value in zip(names, case.parameters, strict=True):
        p = getattr(module, name)
        assert isinstance(p, nn.Parameter) and p.shape == (() if channels == 1 else (3,))
        torch.testing.assert_close(p.detach(), torch.full_like(p, value))
    x = torch.randn(5, 3, 4)
    assert_same_bits(module(x).detach(), call(case, x, list(module.parameters())).detach())
    shown = repr(module)
    assert "trainable=True" in shown and ("num_parameters=3" in shown) == (channels == 3)
    assert list(module.state_dict()) == names


@every_trained
@pytest.mark.parametrize("channels", [1, 3])
def test_a_step_of_an_optimizer_moves_every_parameter(case: Case, channels: int) -> None:
    net = nn.Sequential(
        nn.Linear(4, 3), make(case, trainable=True, num_parameters=channels), nn.Linear(3, 1)
    )
    before = [p.detach().clone() for p in net[1].parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = net(torch.randn(16, 4)).square().mean()
    loss.backward()
    optimizer.step()
    for p, b in zip(net[1].parameters(), before, strict=True):
        assert (p != b).all()


@every_trained
@pytest.mark.parametrize("channels", [1, 3])
def test_copies(case: Case, channels: int) -> None:
    module = make(case, trainable=True, num_parameters=channels)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.rand_like(p))
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    loaded = make(case, trainable=True, num_parameters=channels)
    loaded.load_state_dict(module.state_dict())
    x = torch.randn(4, 3)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
        loaded,
    ):
        assert repr(other) == repr(module)
        assert_same_bits(other(x).detach(), module(x).detach())
        with torch.no_grad():
            next(other.parameters()).add_(1)
        assert not torch.equal(other(x), module(x))


@every_trained
@pytest.mark.parametrize("trainable", [False, True], ids=["fixed", "trained"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_conversions(case: Case, trainable: bool, dtype: torch.dtype) -> None:
    module = make(case, trainable=trainable).to(dtype)
    x = torch.randn(5, 3).to(dtype)
    y = module(x)
    assert y.dtype == dtype
    state = module.state_dict()
    assert all(value.dtype == dtype for value in state.values())
    values = [
        state.get(p.name, torch.tensor(v, dtype=torch.float64))
        for p, v in zip(case.a.parameters, case.parameters, strict=True)
    ]
    assert_rounds(y.detach(), exactly(case, x, values))


@every_function
@pytest.mark.parametrize("channels", [1, 3])
def test_a_module_as_a_function_of_its_parameters(case: Case, channels: int) -> None:
    act = make(case, trainable=True, num_parameters=channels)
    net = nn.Sequential(nn.Linear(2, 3), act, nn.Linear(3, 1)).double()
    batch = torch.randn(7, 2, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, parameters, (x[None],)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, batch)
    net(batch).square().sum().backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad)


@every_function
@pytest.mark.parametrize("trainable", [False, True], ids=["fixed", "trained"])
def test_an_ensemble(case: Case, trainable: bool) -> None:
    nets = [nn.Sequential(nn.Linear(3, 4), make(case, trainable=trainable)) for _ in range(3)]
    parameters, buffers = stack_module_state(nets)
    x = torch.randn(6, 3)

    def run(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        return functional_call(nets[0], (p, b), (x,))

    want = torch.stack([net(x) for net in nets])
    torch.testing.assert_close(vmap(run)(parameters, buffers), want)


@half_dtypes
@every_function
def test_autocast(case: Case, dtype: torch.dtype) -> None:
    """The parameters stay float32, and so do their gradients."""
    net = nn.Sequential(
        nn.Linear(8, 32), make(case, trainable=True, num_parameters=32), nn.Linear(32, 4)
    )
    x = torch.randn(16, 8)

    def gradients() -> list[Tensor]:
        net.zero_grad()
        net(x).float().square().sum().backward()
        return [p.grad.clone() for p in net.parameters()]

    want = gradients()
    with torch.autocast("cpu", dtype=dtype):
        assert net[:2](x).dtype == dtype
        got = gradients()
    for g, w in zip(got, want, strict=True):
        assert g.dtype == torch.float32
        assert (g - w).norm() <= 0.05 * w.norm()


@every_function
@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not_reentrant"])
def test_checkpoint(case: Case, use_reentrant: bool) -> None:
    net = nn.Sequential(
        nn.Linear(8, 16), make(case, trainable=True, num_parameters=16), nn.Linear(16, 8)
    )
    x = torch.randn(4, 8, requires_grad=True)
    want = torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])
    checkpoint(net, x, use_reentrant=use_reentrant).square().sum().backward()
    for got, w in zip([x.grad, *(p.grad for p in net.parameters())], want, strict=True):
        torch.testing.assert_close(got, w)


# ---- the state_dict of the published package ----


class Published(nn.Module):
    """APTx as the package aptx_activation has it (arXiv:2209.06119)."""

    def __init__(
        self, alpha: float = 1.0, beta: float = 1.0, gamma: float = 0.5, trainable: bool = False
    ) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            tensor = torch.tensor(value, dtype=torch.float32)
            if trainable:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return (self.alpha + torch.tanh(self.beta * x)) * self.gamma * x


def network(act: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(act))


VALUES = {"alpha": 0.9, "beta": 1.3, "gamma": 0.6}


@pytest.mark.parametrize("trainable", [False, True], ids=["fixed", "trained"])
@pytest.mark.parametrize("is_theirs_trained", [False, True], ids=["theirs_fixed", "theirs_trained"])
def test_checkpoints_of_the_published_package(trainable: bool, is_theirs_trained: bool) -> None:
    """They load here, and those of trained modules there: strictly, with values that differ."""
    x = torch.randn(9, 4)
    theirs = network(Published(**VALUES, trainable=is_theirs_trained))
    ours = network(mishkit.APTx(trainable=trainable))
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    source = network(mishkit.APTx(**VALUES, trainable=True))
    target = network(Published(trainable=is_theirs_trained))
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target(x), source(x))
    for key, value in source.state_dict().items():
        loaded = target.state_dict()[key]
        assert loaded.shape == value.shape and loaded.dtype == value.dtype


# ---- fixed parameters ----


OPTIONS = ({}, {"save": "output"}, {"inplace": True})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loaded_numbers_count_for_every_option(options: dict[str, Any]) -> None:
    x = torch.randn(5, 3)
    module = mishkit.APTx(**options)
    module.load_state_dict(Published(0.9, 1.3, 0.6).state_dict())
    leaf = x.clone().requires_grad_()
    module(leaf * 1).sum().backward()
    want = x.clone().requires_grad_()
    Published(0.9, 1.3, 0.6)(want).sum().backward()
    torch.testing.assert_close(leaf.grad, want.grad, rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ("old", "rule"),
    [
        (nn.SiLU, {"silu": "aptx"}),
        (nn.SiLU, {"silu": ("aptx", {"beta": 0.7, "save": "output"})}),
        (nn.SiLU, {"1.0": mishkit.APTx(0.9)}),
        (nn.SiLU, {"silu": "swish:beta=1.1"}),
        (mishkit.APTx, {"aptx": "mish"}),
        (mishkit.APTx, {mishkit.APTx: mishkit.Swish}),
    ],
    ids=str,
)
def test_a_swap_leaves_the_keys(old: type[nn.Module], rule: Any) -> None:
    """A checkpoint from before loads into the swapped model and back, both strictly."""
    model, swapped = network(old()), network(old())
    mishkit.swap(swapped, rule)
    assert list(swapped.state_dict()) == list(model.state_dict()) == ["0.weight", "0.bias"]
    swapped.load_state_dict(model.state_dict())
    model.load_state_dict(swapped.state_dict())
    mishkit.lean(swapped, torch.randn(2, 4, requires_grad=True), recompute=False)
    swapped.load_state_dict(model.state_dict())
    mishkit.unswap(swapped)
    swapped.load_state_dict(model.state_dict())


@every_trained
def test_no_conversion_changes_the_numbers(case: Case) -> None:
    act = make(case)
    before = dict(zip(act.parameter_names, case.parameters, strict=True))
    for converted in (
        copy.deepcopy(act).half(),
        copy.deepcopy(act).bfloat16().float(),
        copy.deepcopy(act).double(),
        copy.deepcopy(act).to("meta").to_empty(device="cpu"),
        pickle.loads(pickle.dumps(act)),
    ):
        assert {name: getattr(converted, name) for name in before} == before
    with torch.device("meta"):
        act_on_meta = make(case)
    x = torch.randn(5)
    assert_same_bits(act_on_meta(x), act(x))


@every_trained
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_numbers_of_a_checkpoint_are_taken_over(case: Case, shape: tuple[int, ...]) -> None:
    """Of a trained module, of one that had them as buffers, all of them or some."""
    x = torch.randn(3, 4)
    source = make(case, trainable=True)
    state = {f"1.0.{name}": p.detach().reshape(shape) for name, p in source.named_parameters()}
    net = network(getattr(mishkit, case.a.module_name)())
    state.update(net.state_dict())
    kept = list(state)
    net.load_state_dict(state)
    assert list(state) == kept
    assert_same_bits(net[1](x), source(x).detach())
    last = case.a.parameters[-1].name
    net.load_state_dict({**net.state_dict(), f"1.0.{last}": torch.tensor(0.25)})
    assert getattr(net[1][0], last) == 0.25
    net.load_state_dict(net.state_dict())
    assert getattr(net[1][0], last) == 0.25


@every_trained
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.ones(3), "there are 3 numbers, one a channel; .* num_parameters=3 has as many"),
        (torch.tensor(float("nan")), "beta must be finite"),
        (torch.ones((), device="meta"), "meta"),
    ],
    ids=["channels", "nan", "meta"],
)
def test_numbers_that_can_not_be_taken_over(case: Case, value: Tensor, reason: str) -> None:
    net = network(make(case))
    before = vars(net[1][0]).copy()
    name = case.a.module_name
    with refused(rf"(?s){name}, 1\.0\.beta: .*{reason}"):
        net.load_state_dict({**net.state_dict(), "1.0.beta": value})
    assert vars(net[1][0]) == before
    with refused(r"Unexpected key.* \"1\.0\.delta\""):
        net.load_state_dict({**net.state_dict(), "1.0.beta": 1.0, "1.0.delta": value})


def test_numbers_that_the_output_does_not_do_for_are_not_taken_over() -> None:
    """As the constructor refuses them, so that training does not begin with them."""
    module = mishkit.APTx(save="output")
    with refused(r"(?s)APTx, alpha: .*mishkit\.aptx: it has exactly one minimum where "):
        module.load_state_dict({"alpha": torch.tensor(1.2)})
    assert module.alpha == 1.0
    mishkit.APTx().load_state_dict({"alpha": torch.tensor(1.2)})


BUFFERS = {f"1.0.{name}": torch.tensor(value) for name, value in VALUES.items()}


@pytest.mark.parametrize(
    ("rule", "further", "reason"),
    [
        ({"relu": ("aptx", {"trainable": True})}, {}, r'Missing key.* "1\.0\.alpha"'),
        ({"relu": "mish"}, BUFFERS, r'Unexpected key.* "1\.0\.alpha"'),
        ({"relu": "swish"}, BUFFERS, r'Unexpected key.* "1\.0\.alpha", "1\.0\.gamma"'),
        ({}, BUFFERS, r'Unexpected key.* "1\.0\.alpha"'),
        ({"relu": "aptx"}, {}, None),
        ({"relu": "aptx"}, BUFFERS, None),
        ({"relu": ("aptx", {"trainable": True})}, BUFFERS, None),
    ],
    ids=["to trained", "to mish", "to swish", "unswapped", "fixed", "of buffers", "to parameters"],
)
def test_checkpoints_from_before_a_swap(
    rule: Any, further: dict[str, Tensor], reason: str | None
) -> None:
    """They load strictly, or torch names what would be lost or made up."""
    model = network(nn.ReLU())
    state = {**model.state_dict(), **further}
    mishkit.swap(model, rule)
    if reason:
        with refused(f"(?s){reason}"):
            model.load_state_dict(state)
        return
    model.load_state_dict(state)
    want = VALUES if further else {"alpha": 1.0, "beta": 1.0, "gamma": 0.5}
    for name, value in want.items():
        loaded = torch.as_tensor(getattr(model[1][0], name)).item()
        assert loaded == pytest.approx(value)
    if isinstance(model[1][0].alpha, float):  # back again, too
        after = model.state_dict()
        mishkit.unswap(model)
        model.load_state_dict(after)


@every_function
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_assigned_numbers_count_at_once(case: Case, options: dict[str, Any]) -> None:
    x, act = torch.randn(5, 3), make(case, **options)
    name = act.parameter_names[-1]
    act(x.clone())
    act.double().half()
    for number in (0.75, 1.75, np.float32(1.25)):
        setattr(act, name, number)
        values = [getattr(act, name) for name in act.parameter_names]
        want = call(case, x, values)
        assert_same_bits(act(x.clone()), want)
        assert_same_bits(torch.func.vmap(act)(x.clone()), want)
        with torch.inference_mode():
            assert_same_bits(act(x.clone()), want)
            new = type(act)(**options, **{name: number})
            assert_same_bits(new(x.clone()), want)
    for wrong in (float("inf"), float("nan")):
        setattr(act, name, wrong)
        with refused(rf"mishkit\.{case.a.name}: {name} must be finite"):
            act(x.clone())


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compiled_code_follows_an_assignment(options: dict[str, Any]) -> None:
    x, module = torch.randn(5, 3), mishkit.APTx(**options)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x.clone()), mishkit.aptx(x))
    module.beta = 1.75
    torch.testing.assert_close(compiled(x.clone()), mishkit.aptx(x, beta=1.75))
    module.load_state_dict({"beta": torch.tensor(0.5)})
    torch.testing.assert_close(compiled(x.clone()), mishkit.aptx(x, beta=0.5))


def test_fake_tensors_and_export() -> None:
    act = mishkit.APTx(0.9, save="output")
    with FakeTensorMode() as mode:
        assert act(torch.empty(3, 4)).shape == (3, 4)
        assert mishkit.APTx()(mode.from_tensor(torch.ones(3))).shape == (3,)
    x = torch.randn(3)
    program = torch.export.export(act, (x,))
    assert not program.state_dict
    torch.testing.assert_close(program.module()(x), act(x))


def test_a_tensor_for_a_fixed_parameter_is_its_number() -> None:
    for act in (
        mishkit.Swish(torch.tensor(1.5)),
        mishkit.APTx(beta=torch.tensor([1.5])),
        mishkit.HardMish(torch.tensor(1.5)),
    ):
        numbers = [getattr(act, name) for name in act.parameter_names]
        assert 1.5 in numbers and all(isinstance(number, float) for number in numbers)
        assert not act.state_dict()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("how", ["pickle", "copy"])
def test_modules_of_before_with_numbers_in_buffers(options: dict[str, Any], how: str) -> None:
    old = mishkit.APTx(**options)
    old.eval()
    for name, value in VALUES.items():
        del old.__dict__[name]
        old.register_buffer(name, torch.tensor(value))
    old.__dict__["_numbers"] = ([], [], [])
    act = pickle.loads(pickle.dumps(old)) if how == "pickle" else copy.deepcopy(old)
    x = torch.randn(5)
    assert not act.state_dict() and not act.training
    values = [old._buffers[name].item() for name in VALUES]
    assert_same_bits(act(x.clone()), mishkit.aptx(x, *values))
    assert repr(act) == repr(mishkit.APTx(*values, **options))


# ---- misuse ----


def refused(match: str) -> Any:
    return pytest.raises((ValueError, RuntimeError, TypeError), match=match)


@every_trained
def test_what_needs_the_output_is_refused(case: Case) -> None:
    x, parameters = torch.randn(4, 3), tensors_of(case, ())
    reason = rf"mishkit\.{case.a.name}: .*need parameters that are numbers"
    for bad in ({"save": "output"}, {"inplace": True}):
        with refused(reason):
            call(case, x, parameters, **bad)
    with refused("doesn't support autograd"):
        call(case, x, parameters, out=torch.empty_like(x))
    for bad in ({"save": "output"}, {"inplace": True}):
        with refused(rf"{case.a.module_name}: .*exclude trainable=True"):
            make(case, trainable=True, **bad)


@every_trained
def test_sizes_that_do_not_fit(case: Case) -> None:
    x = torch.randn(4, 3)
    with refused(rf"mishkit\.{case.a.name}: 4 values a parameter need as many channels"):
        call(case, x, tensors_of(case, (4,)))
    with refused("need as many channels"):
        call(case, torch.randn(3), tensors_of(case, (3,)))
    with refused("has 0 values"):
        call(case, x, [p[:0] for p in tensors_of(case, (3,))])
    if len(case.parameters) > 1:
        with refused("has 2 values where another parameter has 3"):
            call(case, x, [*tensors_of(case, (3,))[:-1], torch.ones(2)])
    with refused("need as many channels"):
        make(case, trainable=True, num_parameters=4)(x)


@every_trained
@pytest.mark.parametrize(
    "wrong", [{"num_parameters": 3}, {"num_parameters": 0, "trainable": True}], ids=str
)
def test_num_parameters(case: Case, wrong: dict[str, Any]) -> None:
    with refused("num_parameters="):
        make(case, **wrong)


def test_functions_with_fixed_parameters_take_no_tensor_with_a_gradient() -> None:
    with refused("."):
        mishkit.hard_mish(torch.randn(3), torch.tensor([5.0, 4.0], requires_grad=True))
    with refused("trainable"):
        mishkit.HardMish(trainable=True)
