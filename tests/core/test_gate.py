"""Gates, f(g)·u in one pass: values, layouts, what is kept, and what is refused."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common import (
    DEFAULTS,
    ENGINES,
    EVERY_ENGINE,
    FURTHER,
    KERNELS,
    LAYOUTS,
    OTHERS,
    PLAIN,
    TRITON,
    Case,
    Engine,
    _on_gpu,
    assert_laid_out_like,
    assert_rounds,
    assert_same_bits,
    every_dtype,
    half_dtypes,
    laid_out,
    mostly_slow,
    spread,
    threads,
)
from pairwise import pairwise
from torch import Tensor
from torch.library import opcheck

import mishkit as mk
from mishkit.activation import DTYPES
from mishkit.backends import cpu
from mishkit.functions import ACTIVATIONS
from mishkit.ops import gate as ops
from mishkit.ops.blend import function

CASES = {str(case): case for case in DEFAULTS + OTHERS + FURTHER}
SILU, APTX, DEAD = CASES["silu"], CASES["aptx(0.75,1.25,0.625)"], CASES["hardswish"]
mostly_defaults = pytest.mark.parametrize(
    "case", mostly_slow(CASES.values(), DEFAULTS + OTHERS), ids=str
)
LIMITED = {"free": (math.inf, 0.0), "limited": (1.75, 1.0)}


class Operators:
    """The operators of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(
        self, case: Case, *tensors: Tensor, limit: float = math.inf, offset: float = 0.0
    ) -> Any:
        name = {2: "gate", 3: "gate_backward", 5: "gate_backward_out"}[len(tensors)]
        numbers = (*function(case.a.name, *case.parameters), limit, offset)
        return self.body(name)(*tensors, *numbers)

    def body(self, name: str) -> Callable[..., Any]:
        if self.engine.name == "plain":
            return functools.partial(ops._in_torch, name)
        if self.engine.name == "triton":
            return _on_gpu(functools.partial(ops._on_gpu, name))
        operator: Callable[..., Any] = getattr(torch.ops.mishkit, name).default
        return operator


@pytest.fixture
def gate(every_engine: Engine) -> Iterator[Operators]:
    yield Operators(every_engine)


def exactly(
    case: Case, g: Tensor, u: Tensor, limit: float = math.inf, offset: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """In float64: the output and its derivatives by g and u."""
    x, by = g.double().clamp(max=limit), u.double()
    factor, inside = by.clamp(-limit, limit) + offset, (by.abs() <= limit).double()
    slope = torch.where(g <= limit, case.exactly("df", x) * factor, 0.0)
    return case.exactly("f", x) * factor, slope, case.exactly("f", x) * inside


def pair(dtype: torch.dtype, count: int = 700) -> tuple[Tensor, Tensor, Tensor]:
    """g from all over, where the product is finite; u and a gradient about 1."""
    g = spread(dtype, count)
    g = g[g.abs() < torch.finfo(dtype).max / 16]
    return g, torch.linspace(-2, 2, len(g)).to(dtype), torch.linspace(2, -1, len(g)).to(dtype)


# ---- values --------------------------------------------------------------------------------------


# Each function is code of its own in each type of each instruction set.
@every_dtype
@mostly_defaults
@pytest.mark.parametrize("every_engine", ENGINES, indirect=True, ids=str)
def test_values(case: Case, dtype: torch.dtype, gate: Operators) -> None:
    check_values(gate, case, dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
@pairwise({"case": CASES, "dtype": DTYPES, "limit,offset": list(LIMITED.values())})
def test_values_of_triton(case: Case, dtype: torch.dtype, limit: float, offset: float) -> None:
    check_values(Operators(Engine("triton")), case, dtype, limit, offset, 100)


@pairwise({"every_engine,dtype": [(e, d) for e in ENGINES for d in DTYPES], "case": CASES})
def test_values_with_a_limit(case: Case, dtype: torch.dtype, gate: Operators) -> None:
    check_values(gate, case, dtype, *LIMITED["limited"])


def check_values(
    gate: Operators,
    case: Case,
    dtype: torch.dtype,
    limit: float = math.inf,
    offset: float = 0.0,
    count: int = 700,
) -> None:
    g, u, grad = pair(dtype, count)
    y = gate(case, g, u, limit=limit, offset=offset)
    to_g, to_u = gate(case, grad, g, u, limit=limit, offset=offset)
    want, by_g, by_u = exactly(case, g, u, limit, offset)
    assert_rounds(y, want, extra=4e-6)
    assert_rounds(to_g, by_g * grad.double(), extra=1e-5)
    assert_rounds(to_u, by_u * grad.double(), extra=4e-6)


@pytest.mark.skipif(not KERNELS, reason="no kernels here")
@every_dtype
@mostly_defaults
def test_the_bits_of_the_function_and_a_product(case: Case, dtype: torch.dtype) -> None:
    """float32 and float64: as the function's own operator, followed by a product."""
    g, u, _ = pair(dtype)
    for engine in KERNELS:
        with cpu.using(engine.name):
            y = Operators(engine)(case, g, u)
            wide = g if dtype == torch.float64 else g.float()
            by_hand = engine.operator(case)(wide) * u.to(wide.dtype)
            assert_same_bits(y, by_hand.to(dtype))


@half_dtypes
def test_16_bit_types_are_rounded_once(dtype: torch.dtype) -> None:
    g, u = torch.randn(2, 20_000).to(dtype)
    want = exactly(SILU, g, u)[0]
    error = (mk.gate(g, u).double() - want).abs()
    unit = want.abs().clamp(min=torch.finfo(dtype).smallest_normal) * torch.finfo(dtype).eps
    by_torch = ((F.silu(g) * u).double() - want).abs()
    assert (error / unit).max() < 0.51 < (by_torch / unit).max()


@every_dtype
@pytest.mark.parametrize("limit", [math.inf, 7.0], ids=str)
def test_nan_and_infinity(limit: float, dtype: torch.dtype) -> None:
    g = torch.tensor([torch.nan, 1, 1, torch.inf, -torch.inf, torch.inf] * 30, dtype=dtype)
    u = torch.tensor([1, torch.nan, torch.inf, 2, 2, 0] * 30, dtype=dtype)
    for engine in ENGINES:
        if engine in KERNELS:
            with cpu.using(engine.name):
                y = Operators(engine)(SILU, g, u, limit=limit)
        else:
            y = Operators(engine)(SILU, g, u, limit=limit)
        want = exactly(SILU, g, u, limit)[0].to(dtype)
        torch.testing.assert_close(y, want, equal_nan=True)


@every_dtype
def test_no_gradient_passes_where_the_function_is_dead(dtype: torch.dtype) -> None:
    g = torch.tensor([-40.0, -3.5, 2.0] * 30, dtype=dtype)
    grad = torch.full_like(g, torch.inf)
    for engine in ENGINES:
        to_g, _ = Operators(engine)(DEAD, grad, g, torch.ones_like(g))
        assert torch.equal(to_g.view(-1, 3)[:, :2], torch.zeros(30, 2, dtype=dtype))
        assert to_g[2] == torch.inf


# ---- layouts -------------------------------------------------------------------------------------

HALVES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "chunks": lambda x: x.chunk(2, -1),
    "chunks_of_rows": lambda x: x.chunk(2, 0),
    "chunks_inside": lambda x: x.chunk(2, 1),
    "every_second": lambda x: (x[..., ::2], x[..., 1::2]),
    "transposed": lambda x: x.mT.chunk(2, -1),
    "one_transposed": lambda x: (x.chunk(2, 1)[0], x.chunk(2, 1)[1].mT.contiguous().mT),
    "far_apart": lambda x: (x[..., ::10], x[..., 1::10]),
    "expanded": lambda x: (
        x.chunk(2, -1)[0],
        x[:, :1, : x.shape[-1] // 2].expand(-1, x.shape[1], -1),
    ),
    "every_second_row": lambda x: (x[:, ::2], x[:, 1::2]),
    "backwards_channels": lambda x: (x.movedim(0, -1), x.movedim(0, -1)),
}
SHAPES = {"rows": (4, 4, 600), "short": (6, 6, 20), "long": (2, 2, 3000)}


@pairwise(
    {
        "every_engine,dtype": [(e, d) for e in EVERY_ENGINE for d in DTYPES],
        "halves": HALVES,
        "shape": SHAPES,
        "limit,offset": list(LIMITED.values()),
    },
)
def test_halves_of_one_tensor(
    halves: Callable[[Tensor], tuple[Tensor, Tensor]],
    shape: tuple[int, ...],
    limit: float,
    offset: float,
    dtype: torch.dtype,
    gate: Operators,
) -> None:
    """The bits of contiguous tensors, in the layout of each tensor."""
    if gate.engine.name == "triton" and shape != SHAPES["long"]:
        shape = (*shape[:-1], shape[-1] // 5)  # transposed, each column is a program of its own
    x = torch.randn(shape).to(dtype)
    g, u = halves(x)
    grad = torch.randn(g.shape).to(dtype)
    options = {"limit": limit, "offset": offset}
    y = gate(SILU, g, u, **options)
    to_g, to_u = gate(SILU, grad, g, u, **options)
    same = torch.testing.assert_close if gate.engine == PLAIN else assert_same_bits
    same(y, gate(SILU, g.contiguous(), u.contiguous(), **options))
    want = gate(SILU, grad, g.contiguous(), u.contiguous(), **options)
    for got, of_dense, like in zip((to_g, to_u), want, (g, u), strict=True):
        same(got, of_dense)
        assert_laid_out_like(got, like)
    assert_laid_out_like(y, g)
    # Into halves of another tensor; what lies between them stays.
    other = torch.full_like(x, 7.0)
    into = halves(other) if g.shape == to_g.shape else ()
    if len({t.data_ptr() for t in into}) == 2 and 0 not in into[1].stride():
        body = gate.body("gate_backward_out")
        numbers = (*function("silu"), limit, offset)
        if gate.engine.name != "triton" or not torch.cuda.is_available():
            body(grad, g, u, *into, *numbers)
            same(into[0], to_g)
            same(into[1], to_u)
            untouched = sum(t.numel() for t in into)
            assert (other == 7).sum() >= x.numel() - untouched


@pytest.mark.gpu
@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
@pytest.mark.parametrize("halves", ["every_second", "far_apart"])
def test_several_blocks_of_a_row_with_gaps(halves: str) -> None:
    gate = Operators(Engine("triton"))
    g, u = HALVES[halves](torch.randn(1, 2, 30_000 if halves == "far_apart" else 6000))
    grad = torch.randn(g.shape)
    assert_same_bits(gate(SILU, g, u), gate(SILU, g.contiguous(), u.contiguous()))
    want = gate(SILU, grad, g.contiguous(), u.contiguous())
    for got, of_dense in zip(gate(SILU, grad, g, u), want, strict=True):
        assert_same_bits(got, of_dense)


@pairwise({"engine": ENGINES, "layout": list(LAYOUTS), "dtype": DTYPES})
def test_layouts(layout: str, dtype: torch.dtype, engine: Engine) -> None:
    gate = Operators(engine)
    g = laid_out(layout, dtype)
    u, grad = torch.randn(2, *g.shape).to(dtype)
    same = torch.testing.assert_close if engine == PLAIN else assert_same_bits
    y, (to_g, to_u) = gate(SILU, g, u), gate(SILU, grad, g, u)
    same(y, gate(SILU, g.contiguous(), u))
    assert_laid_out_like(y, g)
    assert_laid_out_like(to_g, g)
    assert_laid_out_like(to_u, u)
    same(gate(SILU, u, g), gate(SILU, u, g.contiguous()))
    same(gate(SILU, g, g), gate(SILU, g.contiguous(), g.contiguous()))
    for got, want in zip((to_g, to_u), gate(SILU, grad, g.contiguous(), u), strict=True):
        same(got, want)


def test_halves_are_not_copied() -> None:
    """Neither in memory nor in time: the allocator sees the result alone."""
    x = torch.randn(64, 4096)
    for g, u in (x.chunk(2, -1), (x[:, ::2], x[:, 1::2])):
        with torch.profiler.profile(profile_memory=True) as profiler:
            mk.gate(g, u)
        events = profiler.profiler.kineto_results.events()
        sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
        if KERNELS:
            assert max(sizes, default=0) == 64 * 2048 * 4
            assert sum(size for size in sizes if size > 0) < 64 * 2048 * 4 + 1024


@pytest.mark.skipif(not KERNELS, reason="no kernels here")
@every_dtype
def test_any_size_and_any_number_of_threads(dtype: torch.dtype) -> None:
    """Blocks and their ends, in parts, and past the caches."""
    g, u, grad = (torch.linspace(*ends, 70_001).to(dtype) for ends in ((-9, 9), (3, -2), (-1, 2)))
    for isa in cpu.isas():
        with cpu.using(isa):
            gate = Operators(Engine(isa))
            with threads(3):
                y, gradients = gate(APTX, g, u), gate(APTX, grad, g, u)
            for begin, end in ((0, 0), (5, 6), (64, 127), (100, 1124), (3, 4500)):
                part = slice(begin, end)
                assert_same_bits(gate(APTX, g[part], u[part]), y[part])
                of_part = gate(APTX, grad[part], g[part], u[part])
                for got, want in zip(of_part, gradients, strict=True):
                    assert_same_bits(got, want[part])
            times = (33 << 20) // (g.numel() * g.element_size()) + 1
            assert_same_bits(gate(APTX, g.repeat(times), u.repeat(times))[-70_001:], y)
            x = torch.cat([g, u]).view(2, -1).T.contiguous().T.repeat(3, 1)
            with threads(3):  # which begin within rows
                rows = gate(APTX, x[:, :35_000], x[:, 35_001:])
            assert_same_bits(rows[1], gate(APTX, x[1, :35_000], x[1, 35_001:]))


# ---- the public call -----------------------------------------------------------------------------


def test_g_and_u_alone_are_kept() -> None:
    g, u = (torch.randn(500, requires_grad=True) * 1 for _ in range(2))
    with mk.KeptBytes() as kept:
        y = mk.gate(g, u)
    assert kept.total == 4000
    with mk.KeptBytes() as of_torch:
        z = F.silu(g) * u
    assert of_torch.total == 6000
    del y, z


@pytest.mark.parametrize("part", ["first", "second", "even", "odd"])
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_glu(dim: int, part: Any) -> None:
    x = torch.randn(4, 6, 8, requires_grad=True)
    middle = x * 1
    with mk.KeptBytes() as kept:
        y = mk.glu(middle, "mish", dim, gate=part)
    assert kept.total == x.nbytes
    g, u = (t.detach().requires_grad_() for t in ops.parts(x, dim, part))
    want = mk.gate(g, u, "mish")
    torch.testing.assert_close(y, want, rtol=0, atol=0)
    grad = torch.randn(y.shape)
    (of_x,) = torch.autograd.grad(y, x, grad)
    for got, each in zip(
        ops.parts(of_x, dim, part), torch.autograd.grad(want, (g, u), grad), strict=True
    ):
        torch.testing.assert_close(got, each, rtol=0, atol=0)


def test_which_half_is_the_gate() -> None:
    x = torch.randn(3, 8)
    first, second = x.chunk(2, -1)
    torch.testing.assert_close(mk.glu(x), F.silu(first) * second)
    torch.testing.assert_close(mk.glu(x, gate="second"), first * F.silu(second))
    torch.testing.assert_close(mk.glu(x, gate="even"), F.silu(x[:, ::2]) * x[:, 1::2])
    torch.testing.assert_close(mk.glu(x, gate="odd"), F.silu(x[:, 1::2]) * x[:, ::2])


def test_the_limited_gate_of_gpt_oss() -> None:
    """As transformers writes it."""
    x = (torch.randn(50, 64, dtype=torch.float64) * 6).requires_grad_()
    g, u = x[..., ::2].clamp(max=7.0), x[..., 1::2].clamp(min=-7.0, max=7.0)
    want = (u + 1) * (g * torch.sigmoid(g * 1.702))
    got = mk.glu(x, "swish", beta=1.702, gate="even", limit=7.0, offset=1.0)
    torch.testing.assert_close(got, want)
    grad = torch.randn_like(got)
    torch.testing.assert_close(
        torch.autograd.grad(got, x, grad), torch.autograd.grad(want, x, grad)
    )


@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.bfloat16), (torch.float16, torch.float32)]
)
def test_two_dtypes_are_promoted(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    g, u = (torch.randn(9).to(dtype).requires_grad_() for dtype in dtypes)
    y = mk.gate(g, u)
    y.sum().backward()
    assert y.dtype == (g * u).dtype and g.grad.dtype == dtypes[0] and u.grad.dtype == dtypes[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_leaves_the_dtype(dtype: torch.dtype) -> None:
    g, u = (torch.randn(9).to(dtype).requires_grad_() for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        y = mk.gate(g, u)
    y.sum().backward()
    assert y.dtype == g.grad.dtype == u.grad.dtype == dtype


def test_out() -> None:
    x = torch.randn(6, 40)
    g, u = x.chunk(2, -1)
    want = mk.gate(g, u)
    out = torch.empty(6, 20)
    assert mk.gate(g, u, out=out) is out
    torch.testing.assert_close(out, want, rtol=0, atol=0)
    transposed = torch.empty(20, 6).mT
    mk.gate(g, u, out=transposed)
    torch.testing.assert_close(transposed, want, rtol=0, atol=0)
    again = x.clone()
    mk.gate(*again.chunk(2, -1), out=again[:, 20:])  # over u, beside g
    torch.testing.assert_close(again[:, 20:], want, rtol=0, atol=0)
    torch.testing.assert_close(again[:, :20], g, rtol=0, atol=0)
    dense = g.clone()
    mk.gate(dense, u, out=dense)
    torch.testing.assert_close(dense, want, rtol=0, atol=0)
    crossed = x.clone()
    mk.gate(*crossed.chunk(2, -1), out=crossed[:, 10:30])  # a part of both
    torch.testing.assert_close(crossed[:, 10:30], want, rtol=0, atol=0)


def test_autograd_notices_what_is_overwritten() -> None:
    g, u = (torch.randn(9, requires_grad=True) * 1 for _ in range(2))
    y = mk.gate(g, u)
    with torch.no_grad():
        mk.gate(g.detach(), u.detach(), out=u.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["gate", "gate_backward", "gate_out", "gate_backward_out"])
@pytest.mark.parametrize("halves", ["chunks", "every_second", "one_transposed"])
def test_operators_are_what_torch_expects(halves: str, name: str) -> None:
    g, u = HALVES[halves](torch.randn(3, 6, 20))
    grad, more = torch.randn(g.shape), [torch.empty(g.shape) for _ in range(2)]
    tensors = {
        "gate": (g, u),
        "gate_backward": (grad, g, u),
        "gate_out": (g, u, more[0]),
        "gate_backward_out": (grad, g, u, *more),
    }[name]
    operator = getattr(torch.ops.mishkit, name).default
    opcheck(operator, (*tensors, *function("aptx", 1.0, 1.0, 0.5), 2.0, 1.0))


def test_misuse() -> None:
    g, u = torch.randn(2, 3, 4)
    row = torch.randn(30)
    wrong: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: mk.gate(g, u[:2]), ValueError, r"must have one shape, not \(3, 4\) and \(2, 4\)"),
        (lambda: mk.gate(g.int(), u.int()), RuntimeError, "16, got int32"),
        (lambda: mk.gate(g, u.int()), RuntimeError, "got float32 and int32"),
        (lambda: mk.gate(g, u.to("meta")), RuntimeError, "g is on cpu and u on meta"),
        (lambda: mk.gate(g, 1.0), TypeError, "must be tensors, not float"),
        (lambda: mk.gate(g, u, "silo"), ValueError, "no function 'silo'; did you mean \"silu\""),
        (lambda: mk.gate(g, u, beta=2), TypeError, "silu has no parameter 'beta', none"),
        (lambda: mk.gate(g, u, "swish", b=2), TypeError, "has no parameter 'b', only beta"),
        (
            lambda: mk.gate(g, u, "hard_mish", k=torch.tensor(5.0)),
            TypeError,
            "the parameters of hard_mish must be numbers",
        ),
        (lambda: mk.gate(g, u, "hard_mish", k=0), ValueError, "k must"),
        (lambda: mk.gate(g, u, limit=0), ValueError, "limit must be positive, not 0"),
        (lambda: mk.gate(g, u, limit=math.nan), ValueError, "limit must be positive, not nan"),
        (lambda: mk.gate(g, u, offset=math.inf), ValueError, "offset must be finite, not inf"),
        (lambda: mk.gate(g, u, out=3), TypeError, "out must be a tensor, not int"),
        (lambda: mk.gate(g, u, out=u[:2]), ValueError, "out must be torch.float32 of shape"),
        (
            lambda: mk.gate(g.clone().requires_grad_(), u, out=torch.empty(3, 4)),
            RuntimeError,
            "out= doesn't support autograd",
        ),
        (lambda: mk.glu(g, gate="last"), ValueError, "gate must be one of first, second, even"),
        (lambda: mk.glu(g[:, :3]), ValueError, r"even size; the shape is \(3, 3\)"),
        (lambda: mk.glu([1.0]), TypeError, "must be a tensor, not list"),
        (lambda: mk.Gate("silo"), ValueError, "no function 'silo'"),
        (lambda: mk.Gate(save="output"), TypeError, "there is no save="),
        (lambda: mk.GLU("silu", gate="left"), ValueError, "gate must be one of first"),
        (lambda: mk.GLU("silu", limit=-1), ValueError, "limit must be positive"),
    ]
    if KERNELS:
        wrong += [
            (
                lambda: mk.gate(row[:20], row[10:], out=row[5:25]),
                RuntimeError,
                "out and an input overlap in part",
            ),
            (
                lambda: mk.gate(g, u, out=row[:4].expand(3, 4)),
                RuntimeError,
                "several elements of the output share one place",
            ),
            (
                lambda: torch.ops.mishkit.gate(g, u, 99, *function("silu")[1:], 1.0, 0.0),
                RuntimeError,
                "no such function",
            ),
            (
                lambda: torch.ops.mishkit.gate(g, u, *function("silu"), 0.0, 0.0),
                RuntimeError,
                "limit must be positive",
            ),
        ]
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()


def test_every_function_has_a_gate() -> None:
    g, u = torch.randn(2, 9)
    for name in ACTIVATIONS:
        torch.testing.assert_close(mk.gate(g, u, name), getattr(mk, name)(g) * u)
        assert mk.Gate(name)(g, u).equal(mk.gate(g, u, name))
