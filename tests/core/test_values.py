"""The operators against the formulas in float64, at every place that a kernel may treat apart."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from common import (
    ABSOLUTE,
    DECODED,
    DEFAULTS,
    EVERY_ENGINE,
    FURTHER,
    ITSELF,
    KERNELS,
    OTHERS,
    PLAIN,
    SHAPES,
    TRITON,
    TURNING,
    Case,
    Engine,
    assert_rounds,
    assert_same_bits,
    every_case,
    every_function,
    every_half,
    mostly_slow,
    spread,
    threads,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pairwise import pairwise
from torch import Tensor

from mishkit.activation import DTYPES, Activation
from mishkit.backends import torch as plain

BODIES = {"": 1, "_packed": 1, "_backward": 2, "_double_backward": 3, "_backward_packed": 2}
"""The operators that run a kernel of their own, and how many tensors they take beside the side."""


def right_of(case: Case, x: Tensor) -> Tensor:
    """The packed side, from its definition."""
    if case.turn is None:
        return torch.empty(0, dtype=torch.uint8)
    return plain.pack(x.double() > case.turn)


def inputs(case: Case, body: str, x: Tensor) -> list[Tensor]:
    """What an operator takes, for the input x: gradients first, then x (or the output and side)."""
    others = [torch.randn(x.shape).to(x.dtype) for _ in range(BODIES[body] - 1)]
    if body != "_backward_packed":
        return [*others, x]
    return [*others, case.exactly("f", x).to(x.dtype), right_of(case, x)]


def tensors(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


# ---- values ----

# The functions, with all that their parameters can change, in each type by each engine. Each
# function in each type of each instruction set at once is in test_accuracy, to tighter bars, and
# of Triton in test_gpu.
AXES = {"every_engine": EVERY_ENGINE, "dtype": DTYPES}
every_value = pairwise({**AXES, "case": SHAPES}, apart=[ITSELF])
every_value_of_others = pairwise({**AXES, "case": SHAPES[len(DEFAULTS) :]}, apart=[ITSELF])
every_decoded_value = pairwise({**AXES, "case": DEFAULTS + OTHERS + FURTHER})
# A loop of its own is compiled for each.
KERNELS_AND_DTYPES = list(itertools.product(KERNELS, DTYPES))


@every_value
def test_forward(every_engine: Engine, case: Case, dtype: torch.dtype) -> None:
    x = spread(dtype)
    assert_rounds(every_engine.operator(case)(x), case.exactly("f", x))


@pytest.mark.gpu
@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
@every_case
def test_triton_in_float32(case: Case) -> None:
    """Every function of Triton's kernels in the type whose errors show most."""
    (engine,), x = TRITON, spread(torch.float32)
    assert_rounds(engine.operator(case)(x), case.exactly("f", x))
    slope = engine.operator(case, "_backward")(torch.ones_like(x), x)
    assert_rounds(slope, case.exactly("df", x))


@every_value
def test_backward(every_engine: Engine, case: Case, dtype: torch.dtype) -> None:
    x = spread(dtype)
    ones = torch.ones_like(x)
    df = case.exactly("df", x)
    backward = every_engine.operator(case, "_backward")
    assert_rounds(backward(ones, x), df)
    grad = torch.linspace(-2, 2, len(x)).to(dtype)
    assert_rounds(backward(grad, x), grad.double() * df)


def assert_double_backward(engine: Engine, case: Case, dtype: torch.dtype) -> None:
    x = spread(dtype)
    grad_grad, grad = (
        torch.linspace(2, -1, len(x)).to(dtype),
        torch.linspace(-2, 2, len(x)).to(dtype),
    )
    to_grad, to_x = engine.operator(case, "_double_backward")(grad_grad, grad, x)
    assert_rounds(to_grad, grad_grad.double() * case.exactly("df", x))
    want = grad_grad.double() * grad.double() * case.exactly("d2f", x)
    assert_rounds(to_x, want, extra=1e-14 if dtype == torch.float64 else 4e-6)


# No other test has the second derivative of each function in each type of each instruction set.
@pairwise(
    {
        "every_engine,dtype": [
            (engine, dtype)
            for engine, dtype in itertools.product(EVERY_ENGINE, DTYPES)
            if {"every_engine": engine, "dtype": dtype} != ITSELF
        ],
        "case": DEFAULTS,
    }
)
def test_double_backward(every_engine: Engine, case: Case, dtype: torch.dtype) -> None:
    assert_double_backward(every_engine, case, dtype)


@every_value_of_others
def test_double_backward_with_other_parameters(
    every_engine: Engine, case: Case, dtype: torch.dtype
) -> None:
    assert_double_backward(every_engine, case, dtype)


@every_decoded_value
def test_from_the_output(every_engine: Engine, case: Case, dtype: torch.dtype) -> None:
    x = spread(dtype)
    y, side = every_engine.operator(case, "_packed")(x)
    assert_rounds(y, case.exactly("f", x))
    assert_same_bits(side, right_of(case, x))
    got = every_engine.operator(case, "_backward_packed")(torch.ones_like(y), y, side)
    # Of an input whose output overflows, that tells no more than that it is large. The rounding of
    # y costs a slope that grows with it half of a rounding.
    told = y.isfinite()
    df = case.exactly("df", x)
    assert_rounds(got[told], df[told], extra=DECODED[dtype], relative=0.5)


@pairwise({"kernels": KERNELS, "case": DEFAULTS + OTHERS, "dtype": DTYPES})
def test_what_one_backend_packs_another_decodes(
    kernels: Engine, case: Case, dtype: torch.dtype
) -> None:
    x = spread(dtype)
    grad = torch.linspace(-2, 2, len(x)).to(dtype)
    y, side = kernels.operator(case, "_packed")(x)
    got = kernels.operator(case, "_backward_packed")(grad, y, side)
    want = plain.backward_packed(case.a, grad, y, side, *case.parameters)
    # One decoder in two arithmetics: as close as the rounding of √ beside the minimum lets them be.
    extra = 1e-6 if dtype == torch.float64 else 4e-6
    assert_rounds(
        got, want.double(), extra=extra + (torch.finfo(dtype).eps * 2 if dtype.itemsize == 2 else 0)
    )


# ---- the ends of the number line ----


@every_decoded_value
def test_limits_and_nan(every_engine: Engine, case: Case, dtype: torch.dtype) -> None:
    """Those of the float64 formula, a zero of f with its sign; and NaN stays."""
    # 40 of them: in whole vectors, and in the tail.
    x = torch.tensor([-torch.inf, torch.inf, torch.nan, -1e30], dtype=torch.float64).to(dtype)
    x = x.repeat(10)
    y, side = every_engine.operator(case, "_packed")(x)
    want = case.exactly("f", x)
    assert_rounds(y, want)
    assert torch.equal(y.signbit()[want == 0], want.signbit()[want == 0])

    ones = torch.ones_like(x)
    want = case.exactly("df", x)
    assert_rounds(every_engine.operator(case, "_backward")(ones, x), want)
    # A finite limit was rounded.
    finite = [abs(v) for v in y.tolist() if math.isfinite(v)]
    rounding = torch.finfo(dtype).eps / 2 * max(finite, default=0)
    got = every_engine.operator(case, "_backward_packed")(ones, y, side)
    assert_rounds(got, want, extra=rounding)
    to_grad, to_x = every_engine.operator(case, "_double_backward")(ones, ones, x)
    assert_rounds(to_grad, want)
    assert_rounds(to_x[~x.isnan()], case.exactly("d2f", x)[~x.isnan()])


@pairwise(
    {
        "every_engine": EVERY_ENGINE,
        "case": mostly_slow(DEFAULTS + OTHERS, DEFAULTS[:7]),
        "dtype": [torch.bfloat16, torch.float16],
    }
)
def test_no_finite_input_gives_nan(every_engine: Engine, case: Case, dtype: torch.dtype) -> None:
    x = every_half(dtype)
    x = x[x.isfinite()]
    ones = torch.ones_like(x)
    y, side = every_engine.operator(case, "_packed")(x)
    results = [
        y,
        every_engine.operator(case, "_backward")(ones, x),
        every_engine.operator(case, "_backward_packed")(ones, y, side),
        *every_engine.operator(case, "_double_backward")(ones, ones, x),
    ]
    for result in results:
        assert not result.isnan().any()


# ---- any parameters ----

NUMBERS = st.floats(-1.5, 1.5, width=32) | st.floats(0.0625, 20, width=32) | st.just(1.0)


@st.composite
def cases(draw: st.DrawFn, a: Activation) -> Case:
    """With parameters that the function takes, and for which it has one minimum at most."""
    case = Case(a, tuple(draw(NUMBERS) for _ in a.parameters))
    try:
        a.check(*case.parameters)
        assert case.turn is None or math.isfinite(case.turn)
    except ValueError:
        assume(False)
    assume(all(abs(p) > 1e-3 for p in case.parameters))
    return case


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), dtype=st.sampled_from(DTYPES))
@pytest.mark.parametrize("a", [c.a for c in TURNING if c.parameters], ids=lambda a: a.name)
def test_any_parameters(a: Activation, data: st.DataObject, dtype: torch.dtype) -> None:
    """No NaN, the side of the turn, and a gradient from the output near that from the input."""
    case = data.draw(cases(a))
    x = spread(dtype, 250)
    ones = torch.ones_like(x)
    f, df = case.exactly("f", x), case.exactly("df", x)
    steepest = max(1.0, df.abs().max().item())
    # As far as an error of the slope moves f, which may be the difference of two large slopes.
    error = 8 * torch.finfo(dtype).eps * steepest * x.double().abs() + ABSOLUTE[dtype] * steepest
    for engine in (*KERNELS[-1:], PLAIN):
        y, side = engine.operator(case, "_packed")(x)
        from_input = engine.operator(case, "_backward")(ones, x)
        from_output = engine.operator(case, "_backward_packed")(ones, y, side)
        curvature = engine.operator(case, "_double_backward")(ones, ones, x)[1]
        assert_same_bits(side, right_of(case, x))
        assert ((y.double() - f).abs() <= error)[y.isfinite()].all()
        assert not any(t.isnan().any() for t in (y, from_input, from_output, curvature))
        assert_rounds(from_input, df, extra=ABSOLUTE[dtype] * steepest)
        assert_rounds(from_output, df, extra=DECODED[dtype] * steepest)


# ---- places ----


@pairwise({"kernels,dtype": KERNELS_AND_DTYPES, "case": DEFAULTS, "body": list(BODIES)})
def test_tails(kernels: Engine, case: Case, dtype: torch.dtype, body: str) -> None:
    """Each length, each misalignment: the bits of a result depend on its input alone."""
    operator = kernels.operator(case, body)
    x = torch.randn(400).mul(4).to(dtype)
    whole = inputs(case, body, x)
    grads_and_x = whole[: BODIES[body]]
    want = tensors(operator(*whole))
    for length in range(131):
        offset = 8 * (length % 5) + (length % 7 if body != "_backward_packed" else 0)
        here = slice(offset, offset + length)
        arguments = [t[here] for t in grads_and_x]
        if body == "_backward_packed":  # its bits begin with a byte
            side = whole[-1]
            arguments.append(
                side[offset // 8 : offset // 8 + (length + 7) // 8] if len(side) else side
            )
        got = tensors(operator(*arguments))
        for g, w in zip(got, want, strict=True):
            if g.dtype != torch.uint8:
                assert_same_bits(g, w[here])
        if body == "_packed":
            assert_same_bits(got[1], right_of(case, x[here]))  # with zeros to fill the last byte


@pairwise(
    {
        "kernels,dtype": KERNELS_AND_DTYPES,
        "case": DEFAULTS,
        "packed": {"out": False, "packed_out": True},
    }
)
def test_nothing_is_written_beside_the_output(
    kernels: Engine, case: Case, dtype: torch.dtype, packed: bool
) -> None:
    operator = kernels.operator(case, "_packed_out" if packed else "_out")
    x = torch.randn(200).mul(4).to(dtype)
    want = kernels.operator(case)(x)
    for length in range(131):
        start = 17 + length % 7
        end = start + length
        memory = torch.full((200,), 7.0, dtype=dtype)
        side = operator(x[start:end], memory[start:end])
        assert_same_bits(memory[start:end], want[start:end])
        assert (memory[:start] == 7).all() and (memory[end:] == 7).all()
        over = x.clone()
        operator(over[start:end], over[start:end])
        assert_same_bits(over, torch.cat([x[:start], want[start:end], x[end:]]))
        if packed:
            assert_same_bits(side, right_of(case, x[start:end]))


@pytest.mark.skipif(not KERNELS, reason="torch's own vectors begin where its threads do")
@every_function
@pytest.mark.parametrize("body", BODIES)
def test_threads_change_nothing(case: Case, body: str) -> None:
    operator = Engine("best").operator(case, body)
    for size in (1 << 13, (1 << 13) + 1, (1 << 18) + 13):
        x = torch.randn(size).mul(4)
        arguments = inputs(case, body, x)
        with threads(1):
            alone = tensors(operator(*arguments))
        with threads(3):
            together = tensors(operator(*arguments))
        for a, b in zip(alone, together, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_outputs_are_the_same(kernels: Engine, dtype: torch.dtype) -> None:
    """Writing past the caches, aligned and not, and in threads."""
    case = next(c for c in every_function.args[1] if c.a.name == "h_mish")
    count = (24 << 20) // dtype.itemsize + 77
    x = torch.randn(count + 1, dtype=torch.float32).to(dtype)
    out, small = torch.empty_like(x), x.split(1 << 16)
    want = torch.cat([kernels.operator(case)(part) for part in small])
    with_sides = torch.cat([kernels.operator(case, "_packed")(part)[0] for part in small])
    for start in (0, 1):
        kernels.operator(case, "_out")(x[start:], out[start:])
        assert_same_bits(out[start:], want[start:])
        out.zero_()
        kernels.operator(case, "_packed_out")(x[start:], out[start:])
        assert_same_bits(out[start:], with_sides[start:])
