"""The APTx neuron and layer: values, gradients, memory, and everything torch does with a module."""

from __future__ import annotations

import copy
import functools
import io
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from common import Engine, assert_same_bits, every_dtype, threads
from neurons import NAMES, arguments, assert_exact, assert_saturates, exact, formula
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

import mishkit
from mishkit import APTxLayer, APTxNeuron, KeptBytes, aptx_layer, neuron
from mishkit.activation import DTYPES
from mishkit.ops import neuron as _neuron_ops

layer_operator = torch.ops.mishkit.aptx_layer.default
backward_operator = torch.ops.mishkit.aptx_layer_backward.default


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """What is computed here is small: waking another thread takes longer."""
    with threads(1):
        yield


def computed(engine: Engine, tensors: list[Tensor]) -> list[Tensor]:
    """Output and gradients, in the order of `NAMES`, by the operators."""
    *inputs, delta, g = tensors
    if engine.name == "plain":
        y = _neuron_ops.forward(*inputs, delta)
        gradients = _neuron_ops.backward(g, *inputs, True)
    else:
        y = layer_operator(*inputs, delta)
        gradients = backward_operator(g, *inputs, True)
    return [y, *gradients]


def by_autograd(tensors: list[Tensor], call: Callable[..., Tensor] = aptx_layer) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in tensors[:5]]
    y = call(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, tensors[5])]


# ---- values and gradients ----


WIDEST = {torch.float32: 130, torch.float64: 40, torch.bfloat16: 70, torch.float16: 70}


@every_dtype
def test_every_width(engine: Engine, dtype: torch.dtype) -> None:
    """Tails of every length, with every number of rows in a tile."""
    for dims_in in range(1, WIDEST[dtype] + 1, 19 if engine.name == "plain" else 1):
        tensors = arguments(dims_in % 20, dims_in, dims_in % 7 + 1, dtype)
        assert_exact(computed(engine, tensors), tensors)


@every_dtype
def test_shapes(engine: Engine, dtype: torch.dtype) -> None:
    batches = (0, 33) if engine.name == "plain" else (0, 1, 8, 33, 70)
    for shape in itertools.product(batches, (1, 31, 100), (1, 20, 33)):
        tensors = arguments(*shape, dtype)
        assert_exact(computed(engine, tensors), tensors)


# Several blocks of columns, of rows, of outputs; several chunks of the batch.
LARGE = [(3, 2500, 2), (300, 40, 3), (5, 3, 600), (1000, 5, 4), (257, 530, 3)]


@pytest.mark.parametrize("shape", LARGE, ids=str)
@every_dtype
def test_large_shapes(kernels: Engine, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    tensors = arguments(*shape, dtype)
    assert_exact(computed(kernels, tensors), tensors)


@pytest.mark.parametrize("shape", [(0, 0, 0), (0, 3, 2), (4, 0, 2), (4, 3, 0), (4, 0, 0)], ids=str)
def test_nothing_to_sum(engine: Engine, shape: tuple[int, int, int]) -> None:
    tensors = arguments(*shape, torch.float32)
    for got, want in zip(computed(engine, tensors), exact(tensors), strict=False):
        torch.testing.assert_close(got.double(), want)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((1, 1 << 16, 1), ["output"]),
        ((1, 1, 1 << 16), ["grad_input"]),
        ((1 << 16, 1, 1), ["grad_alpha", "grad_beta", "grad_gamma"]),
    ],
    ids=["columns", "outputs", "rows"],
)
def test_long_sums_stay_exact(
    kernels: Engine, shape: tuple[int, int, int], names: list[str]
) -> None:
    """Of positive terms; added up one after the other in float32 they are off by 5e-6."""
    tensors = [t.abs() for t in arguments(*shape, torch.float32)]
    results = zip(NAMES, computed(kernels, tensors), exact(tensors), strict=False)
    for name, got, want in results:
        if name in names:
            torch.testing.assert_close(got.double(), want, rtol=6e-7, atol=0)


TANH = {torch.float32: 2e-7, torch.float64: 5e-16, torch.float16: 6e-7}
"""Errors of tanh, absolute."""


@pytest.mark.parametrize("dtype", TANH, ids=str)
def test_each_tanh_is_as_exact_as_is_said(kernels: Engine, dtype: torch.dtype) -> None:
    """With γ = x = 1, where y = α + tanh β; for float16 α is such that y is small."""
    ends = (20.0, 1.0, 0.01)
    beta = torch.cat([torch.linspace(-end, end, 20001, dtype=torch.float64) for end in ends])
    beta = beta.to(dtype).unsqueeze(1)
    ones, none = torch.ones_like(beta), torch.zeros(0, dtype=dtype)
    exactly = beta.double().tanh()
    alpha = -exactly.half().to(dtype) if dtype == torch.float16 else torch.zeros_like(beta)
    got = layer_operator(ones[:1], alpha, beta, ones, none)[0].double()
    want = (alpha + exactly)[:, 0]
    rounding = torch.finfo(dtype).eps * want.abs() if dtype == torch.float16 else 0
    assert ((got - want).abs() - rounding).max() <= TANH[dtype]


@every_dtype
def test_large_numbers_saturate(engine: Engine, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    # In float32 a larger β is taken for 1.2e38.
    large, least = info.max / 4, info.smallest_normal
    assert_saturates(functools.partial(computed, engine), dtype, large=large, least=least)


def test_a_fixed_alpha_keeps_the_relative_accuracy(kernels: Engine) -> None:
    """(1 + tanh(βx)) is found without cancellation: exp(2βx) down to the least of numbers."""
    x = torch.linspace(-30, 5, 1001, dtype=torch.float64).unsqueeze(1)
    ones = torch.ones(1, 1)
    y = layer_operator(x.float(), ones, ones, ones, torch.zeros(0))
    want = 2 * torch.sigmoid(2 * x.float().double()) * x.float()
    # The rounding of the exponent is what remains.
    assert ((y - want).abs() <= 2.5e-7 * (x.abs() + 2) * want.abs()).all()


def test_infinity_and_nan_as_in_plain_torch(kernels: Engine) -> None:
    payload = torch.tensor([0x7FC12345, -0x3EDCBB], dtype=torch.int32).view(torch.float32)
    some = torch.cat([torch.tensor([0.0, 1, -1, 2.5, -3]), payload])
    x = torch.cat([torch.tensor([math.inf, -math.inf, math.nan, 2.0]), payload]).unsqueeze(1)
    parameters = [t.reshape(-1, 1) for t in torch.meshgrid([some] * 3, indexing="ij")]
    got = layer_operator(x, *parameters, torch.zeros(0))
    torch.testing.assert_close(got, formula(x, *parameters), equal_nan=True)
    rows = torch.randn(40, 3)
    rows[7, 1] = math.nan
    y = aptx_layer(rows, *(torch.randn(2, 3) for _ in range(3)))
    assert y[7].isnan().all() and y.isnan().sum() == 2


# ---- what results do not depend on ----


@pytest.mark.parametrize("shape", [*LARGE[1:], (130, 65, 40), (1, 900, 300)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads(
    kernels: Engine, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    tensors = arguments(*shape, dtype)
    with threads(1):
        want = computed(kernels, tensors)
    for count in (2, 3, 16):
        with threads(count):
            for got, single in zip(computed(kernels, tensors), want, strict=True):
                assert_same_bits(got, single)


@every_dtype
def test_alignment_and_neighbours(kernels: Engine, dtype: torch.dtype) -> None:
    """Each tensor from every offset, with NaN before and after it."""
    tensors = arguments(11, 37, 5, dtype)
    want = computed(kernels, tensors)
    for offset in (1, 2, 3, 7, 13):
        moved = []
        for t in tensors:
            row = torch.full((t.numel() + 2 * offset + 64,), math.nan, dtype=dtype)
            row[offset : offset + t.numel()] = t.flatten()
            moved.append(row[offset : offset + t.numel()].view(t.shape))
        for got, expected in zip(computed(kernels, moved), want, strict=True):
            assert_same_bits(got, expected)


def test_the_rest_of_the_batch(kernels: Engine) -> None:
    """A row alone gives the output, and the gradient, that it gives among others."""
    *inputs, delta, g = arguments(45, 50, 7, torch.float32)
    y, to_input = layer_operator(*inputs, delta), backward_operator(g, *inputs, True)[0]
    for row in (0, 7, 8, 31, 44):
        part = slice(row, row + 1)
        alone = [inputs[0][part], *inputs[1:]]
        assert_same_bits(layer_operator(*alone, delta), y[part])
        assert_same_bits(backward_operator(g[part], *alone, True)[0], to_input[part])


STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.mT.contiguous().mT,
    "gaps": lambda t: torch.stack([t, -t], -1).flatten(-2)[..., ::2],
    "columns": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    "expanded": lambda t: t[:1].expand(t.shape),
    "one_number": lambda t: t.flatten()[0].expand(t.shape),
}


@pytest.mark.parametrize("layout", STRIDED)
def test_layouts(kernels: Engine, layout: str) -> None:
    tensors = arguments(6, 9, 4, torch.float32)
    for index in range(6):
        strided = list(tensors)
        if strided[index].dim() == 2:
            strided[index] = STRIDED[layout](strided[index])
        for got, want in zip(
            computed(kernels, strided),
            computed(kernels, [t.contiguous() for t in strided]),
            strict=True,
        ):
            assert got.is_contiguous()
            assert_same_bits(got, want)
    # As sum() makes it.
    tensors[5] = torch.ones(()).expand(6, 4)
    assert_exact(by_autograd(tensors), tensors)


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 0, 3), (2, 1, 3, 1)], ids=str)
def test_leading_dimensions(engine: Engine, lead: tuple[int, ...]) -> None:
    x = torch.randn(*lead, 6, requires_grad=True)
    layer, single = APTxLayer(6, 4), APTxNeuron(6)
    y, z = layer(x), single(x)
    assert y.shape == (*lead, 4) and z.shape == (*lead, 1)
    want = formula(x, layer.alpha, layer.beta, layer.gamma, layer.delta)
    torch.testing.assert_close(y, want)
    g = torch.randn_like(y)
    got = torch.autograd.grad(y, [x, *layer.parameters()], g)
    for a, b in zip(got, torch.autograd.grad(want, [x, *layer.parameters()], g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# ---- autograd ----


def double_layer(use_delta: bool = True) -> tuple[APTxLayer, Tensor]:
    layer = APTxLayer(3, 2, use_delta=use_delta, dtype=torch.float64)
    return layer, torch.randn(4, 3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("use_delta", [True, False])
def test_gradcheck(engine: Engine, use_delta: bool) -> None:
    layer, x = double_layer(use_delta)
    leaves = (x, *layer.parameters())
    assert gradcheck(
        aptx_layer,
        leaves,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


def test_gradgradcheck() -> None:
    layer, x = double_layer()
    leaves = (x, *layer.parameters())
    assert gradgradcheck(aptx_layer, leaves, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("engine_name", ["kernels", "plain"])
def test_only_what_is_asked_for(engine_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every subset of the gradients; the input's is not computed where it is not wanted."""
    tensors = arguments(9, 21, 5, torch.float32)
    want = by_autograd(tensors)[1:]
    with_inputs = []

    def spy(*passed: Any) -> Any:
        with_inputs.append(passed[-1])
        run = backward_operator if engine_name == "kernels" else _neuron_ops.backward
        return run(*passed)

    monkeypatch.setattr(_neuron_ops, "_layer_backward", spy)
    for needed in itertools.product([False, True], repeat=5):
        leaves = [t.clone().requires_grad_(w) for t, w in zip(tensors, needed, strict=False)]
        y = aptx_layer(*leaves)
        assert y.requires_grad == any(needed)
        if any(needed):
            y.backward(tensors[5])
            assert with_inputs.pop() == needed[0]
        for leaf, w, gradient in zip(leaves, needed, want, strict=True):
            assert (leaf.grad is not None) == w
            if w:
                torch.testing.assert_close(leaf.grad, gradient, rtol=1e-5, atol=1e-5)


def test_without_grad() -> None:
    layer, x = APTxLayer(6, 4), torch.randn(3, 6)
    want = layer(x)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, KeptBytes() as kept:
            y = layer(x)
        assert not y.requires_grad and kept.total == 0
        assert torch.equal(y, want)


def test_overwritten_inputs_are_caught() -> None:
    layer, x = APTxLayer(6, 4), torch.randn(3, 6, requires_grad=True)
    h = x * 1
    y = layer(h)
    h.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_backward_twice_and_third_derivatives() -> None:
    layer, x = double_layer()
    y = layer(x)
    y.sum().backward(retain_graph=True)
    once = x.grad.clone()
    y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * once)
    first, want = x.detach().requires_grad_(), x.detach().requires_grad_()
    a, b = layer(first).sum(), formula(want, *layer.parameters()).sum()
    for _ in range(3):
        (a,) = torch.autograd.grad(a.sum(), first, create_graph=True)
        (b,) = torch.autograd.grad(b.sum(), want, create_graph=True)
        torch.testing.assert_close(a, b)


def test_transforms() -> None:
    layer, x = double_layer()
    x = x.detach()
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def ours(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, p, (x,))

    def plain(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return formula(x, *(p[name] for name in ("alpha", "beta", "gamma", "delta")))

    def results(f: Callable[..., Tensor]) -> list[Any]:
        def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
            return f(p, x).square().sum()

        return [
            vmap(f, (None, 0))(parameters, x),
            vmap(f, (None, 1))(parameters, x.expand(5, 4, 3).movedim(0, 1)),
            vmap(f, (0, None))({n: torch.stack([p, 2 * p]) for n, p in parameters.items()}, x),
            vmap(grad(loss), (None, 0))(parameters, x),
            grad(loss)(parameters, x),
            jacrev(f, 1)(parameters, x),
            jacfwd(f, 1)(parameters, x),
            jvp(lambda x: f(parameters, x), (x,), (x.flip(0),))[1],
            hessian(loss, 1)(parameters, x),
        ]

    torch.testing.assert_close(results(ours), results(plain), rtol=1e-9, atol=1e-9)


def test_a_dual_tensor_keeps_its_tangent() -> None:
    layer, x = double_layer()
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        got = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent
        dual = forward_ad.make_dual(x, tangent)
        want = forward_ad.unpack_dual(formula(dual, *layer.parameters())).tangent
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(use_reentrant: bool) -> None:
    layer, x = double_layer()
    leaves = [x, *layer.parameters()]
    want = torch.autograd.grad(layer(x).square().sum(), leaves)
    checkpoint(layer, x, use_reentrant=use_reentrant).square().sum().backward()
    for leaf, gradient in zip(leaves, want, strict=True):
        torch.testing.assert_close(leaf.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(engine: Engine, dtype: torch.dtype) -> None:
    layer, linear, x = APTxLayer(20, 5), nn.Linear(20, 5), torch.randn(8, 20, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
        assert y.dtype == linear(x).dtype == dtype
        with torch.autocast("cpu", enabled=False):
            assert layer(x).dtype == torch.float32
    rounded = [t.detach().to(dtype) for t in (x, *layer.parameters())]
    assert_same_bits(y.detach(), aptx_layer(*rounded))
    y.float().square().sum().backward()
    for leaf in (x, *layer.parameters()):
        assert leaf.grad is not None and leaf.grad.dtype == torch.float32
    wide, x64 = double_layer()
    with torch.autocast("cpu", dtype=dtype):  # which leaves float64 alone
        assert wide(x64).dtype == torch.float64


# ---- operators ----

SAMPLES = [(4, 5, 3), (0, 5, 3), (4, 0, 3), (4, 5, 0), (1, 1, 1)]


@pytest.mark.parametrize("shape", SAMPLES, ids=str)
@pytest.mark.parametrize("kind", ["forward", "without_delta", "backward", "without_input"])
def test_opcheck_and_fakes(kind: str, shape: tuple[int, int, int]) -> None:
    *inputs, delta, g = arguments(*shape, torch.float32)
    operator, values = {
        "forward": (layer_operator, (*inputs, delta)),
        "without_delta": (layer_operator, (*inputs, torch.zeros(0))),
        "backward": (backward_operator, (g, *inputs, True)),
        "without_input": (backward_operator, (g, *inputs, False)),
    }[kind]
    opcheck(operator, values)

    def described(result: Any) -> list[Any]:
        tensors = result if isinstance(result, tuple) else (result,)
        return [(t.shape, t.dtype, t.stride()) for t in tensors]

    want = described(operator(*values))
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) if isinstance(t, Tensor) else t for t in values]
        assert described(operator(*fake)) == want
    meta = [t.to("meta") if isinstance(t, Tensor) else t for t in values]
    assert described(operator(*meta)) == want


def test_on_the_meta_device() -> None:
    layer = APTxLayer(6, 4, device="meta")
    y = layer(torch.randn(3, 6, device="meta"))
    y.sum().backward()
    assert y.is_meta and y.shape == (3, 4)
    assert all(p.grad is not None and p.grad.shape == p.shape for p in layer.parameters())


def test_make_fx() -> None:
    layer = APTxLayer(6, 4)

    def f(x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        y = aptx_layer(x, *parameters)
        return y, *torch.autograd.grad(y.sum(), [x, *parameters])

    def given() -> list[Tensor]:
        return [torch.randn(3, 6, requires_grad=True), *layer.parameters()]

    for mode in ("real", "fake", "symbolic"):
        traced, fresh = make_fx(f, tracing_mode=mode)(*given()), given()
        torch.testing.assert_close(traced(*fresh), f(*fresh))


# ---- compilers ----


def compiled(f: Any, **options: Any) -> Any:
    return torch.compile(f, fullgraph=True, **{"backend": "aot_eager", **options})


def assert_trains_alike(module: Any, want_of: nn.Module, x: Tensor) -> None:
    x.requires_grad_()
    leaves = [x, *want_of.parameters()]
    y, want = module(x), want_of(x)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    weight = torch.linspace(-1, 1, y.numel()).view_as(y)
    gradients, want_gradients = (torch.autograd.grad((t * weight).sum(), leaves) for t in (y, want))
    torch.testing.assert_close(gradients, want_gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("has_kernels", [True, False])
def test_compile(has_kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another batch too; the operators in the graph where they have kernels."""
    monkeypatch.setitem(neuron._kernels, "cpu", DTYPES if has_kernels else ())
    nodes = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        nodes.extend(graph.graph.nodes)
        return graph

    net = nn.Sequential(nn.Linear(7, 9), APTxLayer(9, 6), nn.ReLU(), APTxNeuron(6))
    run = compiled(net, dynamic=True)
    for batch in (5, 8, 3):
        with torch.compiler.set_stance("default" if batch == 5 else "fail_on_recompile"):
            assert_trains_alike(run, net, torch.randn(batch, 7))
    with torch.no_grad():
        torch.testing.assert_close(compiled(net)(torch.ones(2, 3, 7)), net(torch.ones(2, 3, 7)))
    torch._dynamo.reset()
    with torch.no_grad():
        compiled(lambda x: net[1](x).relu(), backend=backend)(torch.ones(2, 9))
    called = {str(node.target) for node in nodes if node.op == "call_function"}
    assert ("mishkit.aptx_layer_traced.default" in called) == has_kernels, called


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_inductor() -> None:
    net = nn.Sequential(nn.Linear(7, 9), APTxLayer(9, 6), nn.ReLU())
    assert_trains_alike(compiled(net, backend="inductor"), net, torch.randn(5, 7))


WRITES: dict[str, Callable[[Tensor, APTxLayer], object]] = {
    "the input": lambda h, layer: h.add_(1),
    "a row of the input": lambda h, layer: h[0].zero_(),
    "a parameter": lambda h, layer: layer.beta.detach().mul_(3),
    "alpha, which is fixed": lambda h, layer: layer.alpha.add_(1),
}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_what_was_kept_and_written_over_is_refused(
    write: Callable[[Tensor, APTxLayer], object], backend: str
) -> None:
    layer = APTxLayer(9, 6, is_alpha_trainable=False)

    def f(x: Tensor) -> Tensor:
        h = x * 1
        y = layer(h)
        with torch.no_grad():
            write(h, layer)
        return y

    for run in (f, compiled(f, backend=backend)):
        with pytest.raises(Exception, match="modified by an inplace operation"):
            run(torch.randn(5, 9, requires_grad=True)).sum().backward()


@pytest.mark.usefixtures("fresh_compiler")
def test_second_derivatives_of_compiled_code() -> None:
    """With a backend that leaves autograd to torch; others refuse them."""
    layer, x = APTxLayer(9, 6), torch.randn(5, 9, requires_grad=True)
    seconds = []
    for run in (layer, compiled(layer, backend="eager")):
        (gradient,) = torch.autograd.grad(run(x).sum(), x, create_graph=True)
        seconds += torch.autograd.grad(gradient.square().sum(), x)
    torch.testing.assert_close(seconds[1], seconds[0])


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_training_keeps_no_more() -> None:
    layer, x = APTxLayer(30, 20), torch.randn(64, 30)
    run = compiled(layer, backend="aot_eager_decomp_partition")
    run(x).sum().backward()
    with KeptBytes(exclude=[x, *layer.parameters()]) as kept:
        run(x).sum().backward()
    assert kept.total == 0


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_autocast_and_transforms() -> None:
    layer, x = APTxLayer(9, 6), torch.randn(5, 9)

    def under_autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    assert_same_bits(compiled(under_autocast)(x).detach(), under_autocast(x).detach())
    for f in (vmap(layer), jacrev(layer), lambda x: jvp(layer, (x,), (x,))[1]):
        torch.testing.assert_close(compiled(f)(x), f(x))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non_strict"])
@pytest.mark.parametrize("make", [lambda: APTxLayer(8, 3), lambda: APTxNeuron(8)])
def test_export_has_torchs_operators_alone(make: Callable[[], nn.Module], strict: bool) -> None:
    module = make()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        module, (torch.randn(4, 8),), dynamic_shapes=({0: batch},), strict=strict
    )
    for form in (program, program.run_decompositions()):
        called = [node.target for node in form.graph.nodes if node.op == "call_function"]
        assert called and {target.namespace for target in called} == {"aten"}
        for count in (4, 7):
            x = torch.randn(count, 8)
            torch.testing.assert_close(form.module()(x), module(x))


# ---- modules ----


class PublishedLayer(nn.Module):
    """What aptx_neuron 0.0.10 makes: names, shapes and the order of its random numbers."""

    def __init__(self, dims_in: int, dims_out: int, is_alpha_trainable: bool, use_delta: bool):
        super().__init__()
        shape = (dims_out, dims_in) if dims_out else (dims_in,)
        if is_alpha_trainable:
            self.alpha = nn.Parameter(torch.randn(shape))
        else:
            self.register_buffer("alpha", torch.ones(shape))
        self.beta = nn.Parameter(torch.randn(shape))
        self.gamma = nn.Parameter(torch.randn(shape))
        delta = nn.Parameter(torch.zeros(dims_out or 1)) if use_delta else None
        self.register_parameter("delta", delta)

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta, gamma = (t if t.dim() == 2 else t[None] for t in self.shared)
        return formula(x, alpha, beta, gamma, self.delta)

    @property
    def shared(self) -> tuple[Tensor, ...]:
        return self.alpha, self.beta, self.gamma


VARIANTS = list(itertools.product([0, 5], [True, False], [True, False]))
every_variant = pytest.mark.parametrize(
    ("dims_out", "is_alpha_trainable", "use_delta"), VARIANTS, ids=str
)


def neurons(dims_out: int, *options: bool, **keywords: Any) -> nn.Module:
    """Our module, like PublishedLayer(19, dims_out, …)."""
    if dims_out:
        return APTxLayer(19, dims_out, *options, **keywords)
    return APTxNeuron(19, *options, **keywords)


@every_variant
def test_the_published_parameters(dims_out: int, is_alpha_trainable: bool, use_delta: bool) -> None:
    """The same numbers of the same seed; checkpoints of either fit the other; the same outputs."""
    torch.manual_seed(3)
    theirs = PublishedLayer(19, dims_out, is_alpha_trainable, use_delta)
    next_number = torch.randn(1)
    torch.manual_seed(3)
    ours = neurons(dims_out, is_alpha_trainable, use_delta)
    assert torch.randn(1) == next_number
    state, published = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(published)
    for name in published:
        assert_same_bits(state[name], published[name])
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()

    for source, target in ((ours, theirs), (theirs, ours)):
        with torch.no_grad():
            for tensor in (*source.parameters(), *source.buffers()):
                tensor.normal_()
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True), strict=True)
        x = torch.randn(6, 19)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@every_variant
def test_initialising_anew(dims_out: int, is_alpha_trainable: bool, use_delta: bool) -> None:
    torch.manual_seed(3)
    ours = neurons(dims_out, is_alpha_trainable, use_delta)
    want = copy.deepcopy(ours.state_dict())
    with torch.no_grad():
        for tensor in (*ours.parameters(), *ours.buffers()):
            tensor.fill_(7)
    torch.manual_seed(3)
    ours.reset_parameters()  # type: ignore[operator]
    empty = neurons(dims_out, is_alpha_trainable, use_delta, device="meta").to_empty(device="cpu")
    torch.manual_seed(3)
    empty.reset_parameters()
    for state in (ours.state_dict(), empty.state_dict()):
        assert list(state) == list(want)
        for name in want:
            assert_same_bits(state[name], want[name])


@pytest.mark.parametrize("is_alpha_trainable", [True, False])
def test_scaled_outputs_have_variance_one(is_alpha_trainable: bool) -> None:
    """And gradients that of a linear layer; the published ones are 35 times larger at 784."""
    layer = APTxLayer(784, 500, is_alpha_trainable, init="scaled")
    x = torch.randn(500, 784, requires_grad=True)
    y = layer(x)
    (to_input,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert y.std().item() == pytest.approx(1, abs=0.02)
    assert to_input.var().item() == pytest.approx(1.05 * 500 / 784, rel=0.03)
    published = APTxLayer(784, 500, is_alpha_trainable)
    assert published(x).std().item() == pytest.approx(math.sqrt(1.522 * 784), rel=0.02)
    outputs = torch.stack([APTxNeuron(50, init="scaled")(torch.randn(50)) for _ in range(2000)])
    assert outputs.std().item() == pytest.approx(1, abs=0.06)


def test_scaling_leaves_the_other_numbers() -> None:
    torch.manual_seed(3)
    published = APTxLayer(9, 4)
    torch.manual_seed(3)
    scaled = APTxLayer(9, 4, init="scaled")
    assert torch.equal(scaled.alpha, published.alpha) and torch.equal(scaled.beta, published.beta)
    torch.testing.assert_close(scaled.gamma * math.sqrt(1.522056 * 9), published.gamma)


def test_repr() -> None:
    assert repr(APTxLayer(3, 2, use_delta=False)) == (
        "APTxLayer(input_dim=3, output_dim=2, is_alpha_trainable=True, use_delta=False)"
    )
    assert repr(APTxNeuron(3, False, init="scaled")) == (
        "APTxNeuron(input_dim=3, is_alpha_trainable=False, use_delta=True, init='scaled')"
    )


@every_dtype
def test_copies(dtype: torch.dtype) -> None:
    layer = APTxLayer(9, 4, is_alpha_trainable=False, dtype=dtype)
    x = torch.randn(3, 9).to(dtype)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert repr(copied) == repr(layer)
        assert torch.equal(copied(x), layer(x))
    assert layer.alpha.dtype == dtype and layer.double()(x.double()).dtype == torch.float64


def test_it_learns() -> None:
    """A neuron finds a function that no linear one has."""
    single = APTxNeuron(2, init="scaled")
    optimiser = torch.optim.Adam(single.parameters(), lr=0.05)
    x = torch.randn(512, 2)
    target = (x[:, :1] * torch.tanh(x[:, :1])) - 0.5 * x[:, 1:]
    for _ in range(300):
        optimiser.zero_grad()
        loss = (single(x) - target).square().mean()
        loss.backward()
        optimiser.step()
    assert loss < 1e-3


# ---- memory ----


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most that is allocated at a time during a call, beyond what was before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    del result
    return max(itertools.accumulate(event.nbytes() for event in events), default=0)


@pytest.mark.parametrize("shape", [(64, 1100, 60), (2000, 20, 30)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_peak_memory(
    engine: Engine,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Results and scratch: a few times the tensors that there are anyway."""
    batch, dims_in, dims_out = shape
    layer = APTxLayer(dims_in, dims_out, dtype=dtype)
    x = torch.randn(batch, dims_in).to(dtype).requires_grad_()
    if engine.name == "plain":
        monkeypatch.setattr(_neuron_ops, "_layer", _neuron_ops.forward)
        monkeypatch.setattr(_neuron_ops, "_layer_backward", _neuron_ops.backward)

    def step() -> list[Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad(y, [x, *layer.parameters()], torch.ones_like(y))]

    step()
    results = batch * (dims_in + 2 * dims_out) + dims_out * (3 * dims_in + 1)
    # In float32: grad transposed, and where the batch is cut into chunks three sums for each.
    computed = batch * dims_out + (3 * dims_out * 32 * 32 if dims_in < 32 * 32 else 0)
    # Scratch of two threads; plain torch holds eight blocks.
    scratch = 8 * 4 * _neuron_ops.BLOCK["cpu"] if engine.name == "plain" else 2 * 150_000
    assert peak_bytes(step) <= results * x.element_size() + computed * 4 + scratch
    assert results * 4 + computed * 4 + 300_000 < batch * dims_in * dims_out * 4 / 2


def test_peak_memory_of_the_published_way() -> None:
    """The control of the test above."""
    batch, dims_in, dims_out = 64, 200, 50
    layer, x = APTxLayer(dims_in, dims_out), torch.randn(batch, dims_in)
    peak = peak_bytes(lambda: formula(x, *layer.parameters()).sum().backward())
    assert peak > 3 * batch * dims_in * dims_out * 4


def test_what_is_kept_for_backward() -> None:
    """The input and the parameters, as a linear layer does."""
    layer, x = APTxLayer(40, 30), torch.randn(64, 40)
    with KeptBytes(exclude=[x, *layer.parameters()]) as kept:
        layer(x)
    assert kept.total == 0
    with KeptBytes() as kept:
        layer(x * 1)
    assert kept.total == 4 * (64 * 40 + 3 * 40 * 30)


# ---- misuse ----


def test_misuse() -> None:
    layer, x = APTxLayer(6, 4), torch.randn(3, 6)
    a, b, c, d = layer.alpha, layer.beta, layer.gamma, layer.delta
    wrong: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (ValueError, r"last dimension must be 6; its shape is \(3, 5\)", lambda: layer(x[:, 1:])),
        (ValueError, r"last dimension must be 6; its shape is \(\)", lambda: layer(x[0, 0])),
        (ValueError, r"must all be \(out, in\), not \(4, 6\)", lambda: aptx_layer(x, a, b, c[1:])),
        (ValueError, r"must all be \(out, in\)", lambda: aptx_layer(x, a[0], b[0], c[0])),
        (ValueError, r"delta must have shape \(4,\)", lambda: aptx_layer(x, a, b, c, d[1:])),
        (RuntimeError, "differ in dtype: float64, float32", lambda: layer(x.double())),
        (RuntimeError, "differ in dtype: int64, float32", lambda: layer(x.long())),
        (
            RuntimeError,
            "expected .* got int64",
            lambda: aptx_layer(*(t.long() for t in (x, a, b, c))),
        ),
        (TypeError, "input must be a tensor, not list", lambda: aptx_layer([1.0], a, b, c)),
        (TypeError, "delta must be a tensor or None, not int", lambda: aptx_layer(x, a, b, c, 1)),
        (ValueError, "APTxLayer: init must be .* not 'he'", lambda: APTxLayer(2, 3, init="he")),
        (ValueError, "APTxNeuron: init must be .* not 'he'", lambda: APTxNeuron(2, init="he")),
    ]
    for kind, message, run in wrong:
        with pytest.raises(kind, match=message) as caught:
            run()
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(("mishkit.aptx_layer: ", "APTx"))


def test_operators_check_for_themselves(kernels: Engine) -> None:
    x, a, b, c, d, g = arguments(3, 6, 4, torch.float32)
    wrong = [
        lambda: layer_operator(x[0], a, b, c, d),
        lambda: layer_operator(x[:, 1:], a, b, c, d),
        lambda: layer_operator(x, a[1:], b, c, d),
        lambda: layer_operator(x, a, b, c, d[1:]),
        lambda: layer_operator(x, a, b.double(), c, d),
        lambda: layer_operator(x, a, b, c, d.double()),
        lambda: layer_operator(*(t.long() for t in (x, a, b, c, d))),
        lambda: backward_operator(g[1:], x, a, b, c, True),
        lambda: backward_operator(g.double(), x, a, b, c, True),
    ]
    for run in wrong:
        with pytest.raises(RuntimeError, match=r"mishkit\.aptx_layer: "):
            run()


def test_the_public_names() -> None:
    for name in ("APTxLayer", "APTxNeuron", "aptx_layer"):
        assert name in mishkit.__all__ and getattr(mishkit, name).__doc__
