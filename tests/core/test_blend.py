"""The blend of two functions in one kernel: values, layouts, gradients of every kind."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from common import (
    DEFAULTS,
    ENGINES,
    KERNELS,
    LAYOUTS,
    OTHERS,
    ROOT,
    TRITON,
    Case,
    Engine,
    _on_gpu,
    assert_laid_out_like,
    assert_rounds,
    assert_same_bits,
    every_dtype,
    every_half,
    half_dtypes,
    laid_out,
    spread,
    threads,
)
from pairwise import pairwise
from torch import Tensor
from torch.library import opcheck

import mishkit as mk
from mishkit.activation import DTYPES
from mishkit.backends import cpu
from mishkit.backends import torch as plain
from mishkit.bodies import BODIES
from mishkit.functions import ACTIVATIONS
from mishkit.ops import blend as ops

PAIRS = [
    *zip(DEFAULTS, DEFAULTS[5:] + DEFAULTS[:5], strict=True),
    *zip(OTHERS[:2], OTHERS[2:], strict=True),
]
"""Every function is the first of a pair, and the second of another; then with other parameters."""
PAIRS_BY_ID = {f"{first}-{second}": (first, second) for first, second in PAIRS}
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=PAIRS_BY_ID)
every_value = pairwise({"engine": ENGINES, "pair": PAIRS_BY_ID, "dtype": DTYPES})
TYPICAL, SMOOTH = (
    next(pair for pair in PAIRS if pair[0].a.name == name) for name in ("silu", "softplus")
)


def both_of(pair: tuple[Case, Case]) -> tuple[float, ...]:
    return tuple(n for case in pair for n in ops.function(case.a.name, *case.parameters))


def mixed(pair: tuple[Case, Case], formula: str, x: Tensor, t: float) -> Tensor:
    a, b = (case.exactly(formula, x) for case in pair)
    return (1 - t) * a + t * b


def called(pair: tuple[Case, Case], t: float = 0.3) -> Callable[[Tensor], Tensor]:
    at = ops.Fraction(t, [])
    return lambda x: ops.call(x, both_of(pair), at)


class Operators:
    """`blend` and `blend_backward` of an engine, for tensors and t."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, pair: tuple[Case, Case], t: float, *tensors: Tensor) -> Tensor:
        name = "blend" if len(tensors) == 1 else "blend_backward"
        if self.engine.name == "plain":
            body: Any = functools.partial(
                plain.forward if name == "blend" else plain.backward, ops.BLEND
            )
        elif self.engine.name == "triton":
            body = _on_gpu(functools.partial(ops.on_gpu, name))
        else:
            body = getattr(torch.ops.mishkit, name).default
        return body(*tensors, *both_of(pair), t)


@pytest.fixture
def blend(engine: Engine) -> Iterator[Operators]:
    yield Operators(engine)


# ---- values --------------------------------------------------------------------------------------


@every_value
def test_values(pair: tuple[Case, Case], dtype: torch.dtype, blend: Operators) -> None:
    x = spread(dtype, 700)
    grad = torch.linspace(-2, 2, x.numel()).to(dtype)
    t = 0.30000001192092896  # which float32 has
    y, gradient = blend(pair, t, x), blend(pair, t, grad, x)
    assert_rounds(y, mixed(pair, "f", x, t))
    assert_rounds(gradient, mixed(pair, "df", x, t) * grad.double(), extra=3e-6)


# Each pair is code of its own in each type of each instruction set.
@every_dtype
@every_pair
def test_at_the_ends_it_is_one_function_to_the_bit(
    pair: tuple[Case, Case], dtype: torch.dtype, blend: Operators
) -> None:
    """Which also tells whether the two tables, in C++ and in Python, have one order."""
    x = spread(dtype, 300)
    grad = torch.full_like(x, 0.7)
    for t, case in zip((0.0, 1.0), pair, strict=True):
        assert_same_bits(blend(pair, t, x), blend.engine.operator(case)(x))
        alone = blend.engine.operator(case, "_backward")(grad, x)
        assert_same_bits(blend(pair, t, grad, x), alone)


@every_value
def test_nan_and_infinity(pair: tuple[Case, Case], dtype: torch.dtype, blend: Operators) -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan] * 30, dtype=dtype)
    for t in (1e-30, 0.5, 1 - 2**-24):
        y, gradient = blend(pair, t, x), blend(pair, t, torch.ones_like(x), x)
        assert y[2::3].isnan().all() and gradient[2::3].isnan().all()
        torch.testing.assert_close(y[:2].double(), mixed(pair, "f", x[:2], t))
        want = mixed(pair, "df", x[:2], t)
        torch.testing.assert_close(gradient[:2].double(), want, rtol=0.01, atol=1e-6)


@half_dtypes
def test_16_bit_types_are_rounded_once(dtype: torch.dtype) -> None:
    """Within half a unit in the last place, for every number: as by float32, and then rounded."""
    x, info = every_half(dtype), torch.finfo(dtype)
    run, pair = Operators([*KERNELS, Engine("plain")][0]), PAIRS[5]
    got, want = run(pair, 0.5, x[x.isfinite()]).double(), mixed(pair, "f", x[x.isfinite()], 0.5)
    inside = want.abs() < info.max
    unit = want.abs().clamp(min=info.smallest_normal) * info.eps
    assert ((got - want).abs() / unit)[inside].max() < 0.51


@pytest.mark.skipif(not KERNELS, reason="no kernels here")
@every_dtype
def test_any_size_and_any_number_of_threads(dtype: torch.dtype) -> None:
    """Blocks and their ends, in parts, and past the caches."""
    x = torch.linspace(-9, 9, 70_001).to(dtype)
    grad = torch.linspace(3, -1, 70_001).to(dtype)
    for isa in cpu.isas():
        with cpu.using(isa):
            run = Operators(Engine(isa))
            with threads(3):
                y, gradient = run(TYPICAL, 0.25, x), run(TYPICAL, 0.25, grad, x)
            for begin, end in ((0, 0), (5, 6), (64, 127), (100, 1124), (3, 4500)):
                part = run(TYPICAL, 0.25, x[begin:end])
                assert_same_bits(part, y[begin:end])
                assert_same_bits(
                    run(TYPICAL, 0.25, grad[begin:end], x[begin:end]), gradient[begin:end]
                )
            large = x.repeat((33 << 20) // (x.numel() * x.element_size()) + 1)
            assert_same_bits(run(TYPICAL, 0.25, large)[-70_001:], y)


@pytest.mark.gpu
@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "pair",
    [pair for pair in PAIRS if pair[0].a.name in ("silu", "gelu", "aptx")][:3],
    ids=lambda pair: f"{pair[0]}-{pair[1]}",
)
def test_triton(pair: tuple[Case, Case], dtype: torch.dtype) -> None:
    run = Operators(Engine("triton"))
    x = spread(dtype, 1500).reshape(-1, 1).expand(-1, 2).contiguous().mT
    grad = torch.randn(x.shape).to(dtype)
    y, gradient = run(pair, 0.3, x), run(pair, 0.3, grad, x)
    assert_rounds(y, mixed(pair, "f", x, 0.3))
    assert_rounds(gradient, mixed(pair, "df", x, 0.3) * grad.double(), extra=3e-6)
    assert_laid_out_like(y, x)
    assert_laid_out_like(gradient, x)
    for t, case in zip((0.0, 1.0), pair, strict=True):
        assert_same_bits(run(pair, t, x), Engine("triton").operator(case)(x))
    if dtype != torch.float64:  # which plain torch computes
        with pytest.raises(RuntimeError, match=r"mishkit\.blend: the tensors differ"):
            run(pair, 0.3, grad[:1], x)


# ---- layouts -------------------------------------------------------------------------------------


@pairwise({"engine": ENGINES, "layout": list(LAYOUTS), "dtype": DTYPES})
def test_layouts(layout: str, dtype: torch.dtype, blend: Operators) -> None:
    x, f = laid_out(layout, dtype), called(TYPICAL)
    grad = torch.randn(x.shape).to(dtype)
    y, gradient = blend(TYPICAL, 0.5, x), blend(TYPICAL, 0.5, grad, x)
    assert_laid_out_like(y, x)
    assert_laid_out_like(gradient, x)
    # Plain torch computes what lies otherwise by other instructions.
    same = torch.testing.assert_close if blend.engine.name == "plain" else assert_same_bits
    same(y, blend(TYPICAL, 0.5, x.contiguous()))
    same(gradient, blend(TYPICAL, 0.5, grad, x.contiguous()))
    assert_laid_out_like(f(x.detach().requires_grad_()), x)


# ---- derivatives ---------------------------------------------------------------------------------


@every_pair
def test_derivatives(pair: tuple[Case, Case]) -> None:
    """Any order, in every mode: against the formulas of both."""
    x = (torch.randn(12, dtype=torch.float64) * 2).requires_grad_()
    f, t = called(pair), ops.Fraction(0.3, []).value
    (first,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    want = [mixed(pair, formula, x, t) for formula in ("df", "d2f")]
    torch.testing.assert_close(first, want[0])
    torch.testing.assert_close(second, want[1])
    v = torch.randn_like(x)
    _, tangent = torch.func.jvp(f, (x.detach(),), (v,))
    torch.testing.assert_close(tangent, v * want[0])
    each = torch.func.vmap(torch.func.grad(lambda element: f(element)))(x.detach())
    torch.testing.assert_close(each, want[0])
    hessian = torch.func.hessian(lambda x: f(x).sum())(x.detach())
    torch.testing.assert_close(hessian.diagonal(), want[1])


def test_third_derivatives_and_forward_mode() -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    f = called(SMOOTH)
    assert torch.autograd.gradcheck(f, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True)
    derivative = f(x).sum()
    for _ in range(3):
        (gradient,) = torch.autograd.grad(derivative, x, create_graph=True)
        derivative = gradient.sum()
    assert gradient.abs().sum() > 0


def test_the_input_alone_is_kept() -> None:
    x = torch.randn(500, requires_grad=True)
    with mk.KeptBytes() as kept:
        called(TYPICAL)(x)
    assert kept.total == 2000


def test_a_backward_pass_has_the_t_of_its_forward_pass() -> None:
    x, t = torch.randn(50, requires_grad=True), ops.Fraction(0.25, [])
    y = ops.call(x, both_of(TYPICAL), t)
    t.set(1.0)
    (got,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(got, mixed(TYPICAL, "df", x, 0.25).float())


# ---- the operators -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["channels_last", "columns"])
def test_operators_are_what_torch_expects(layout: str) -> None:
    x = laid_out(layout, torch.float32)
    numbers = both_of(TYPICAL)
    opcheck(torch.ops.mishkit.blend.default, (x, *numbers, 0.5))
    opcheck(torch.ops.mishkit.blend_backward.default, (torch.randn(x.shape), x, *numbers, 0.5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_leaves_the_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(9).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = called(TYPICAL)(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype


DEAD = [case for case in DEFAULTS if case.a.is_dead]
DEAD_PAIRS = list(zip(DEAD, DEAD[1:] + DEAD[:1], strict=True))


@every_dtype
@pytest.mark.parametrize("grad", [torch.inf, -torch.inf, torch.nan], ids=str)
@pytest.mark.parametrize("pair", DEAD_PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_no_gradient_passes_where_both_are_dead(
    pair: tuple[Case, Case], grad: float, dtype: torch.dtype, blend: Operators
) -> None:
    """As torch's own sum of the two has it."""
    x = torch.tensor([-40.0, -3.5, -torch.inf] * 30, dtype=dtype)
    for t in (0.0, 1e-30, 0.25, 1.0):
        got = blend(pair, t, torch.full_like(x, grad), x)
        assert torch.equal(got, torch.zeros_like(got)), t
    alive = torch.full_like(x, 4.0)
    assert not blend(pair, 0.25, torch.full_like(x, grad), alive).isfinite().any()


@every_dtype
def test_a_gradient_passes_where_one_is_alive(dtype: torch.dtype, blend: Operators) -> None:
    relu, mish = (case for case in DEFAULTS if case.a.name in ("relu", "mish"))
    x = torch.tensor([-3.5, -2.0] * 30, dtype=dtype)
    for pair in ((relu, mish), (mish, relu)):
        got = blend(pair, 0.5, torch.full_like(x, torch.inf), x)
        assert torch.equal(got, torch.full_like(x, -torch.inf))


def test_the_gradients_of_dead_blends_in_training() -> None:
    x = torch.tensor([-40.0, -3.5, 2.0], requires_grad=True)
    for pair in DEAD_PAIRS:
        y = called(pair)(x)
        (got,) = torch.autograd.grad(y, x, torch.full_like(y, torch.inf), create_graph=True)
        assert torch.equal(got[:2], torch.zeros(2)) and got[2] == torch.inf
        (again,) = torch.autograd.grad(got[:2].sum(), x, torch.tensor(torch.inf))
        assert torch.equal(again[:2], torch.zeros(2))


def test_misuse() -> None:
    x, both = torch.ones(3), both_of(TYPICAL)
    wrong = (
        (lambda: called(TYPICAL)(x.long()), RuntimeError, "float32, float64, bfloat16 or float16"),
        (lambda: called(TYPICAL)([1.0]), TypeError, "must be a tensor, not list"),
        (lambda: torch.ops.mishkit.blend(x, *both, 1.5), RuntimeError, "from 0 to 1"),
        (lambda: torch.ops.mishkit.blend(x, *both, torch.nan), RuntimeError, "from 0 to 1"),
        (lambda: torch.ops.mishkit.blend(x, 99, *both[1:], 0.5), RuntimeError, "no such function"),
        (
            lambda: torch.ops.mishkit.blend_backward(x[:2], x, *both, 0.5),
            RuntimeError,
            "the tensors differ",
        ),
    )
    for call, error, message in wrong[: 6 if KERNELS else 2]:
        with pytest.raises(error, match=message):
            call()


def test_csrc_has_the_same_order() -> None:
    """A blend names its functions by their places, and the cost model reads bodies by theirs."""
    csrc = ROOT / "csrc"
    table, kernels = (csrc / name for name in ("functions/table.h", "kernels.h"))
    functions = re.findall(r"^  X\((\w+), \w+\)", table.read_text(), re.MULTILINE)
    assert functions == list(ACTIVATIONS)
    (enumeration,) = re.findall(r"enum class Bodies \{ (.*?) \}", kernels.read_text())
    assert enumeration.split(", ") == list(BODIES)
