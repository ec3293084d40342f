"""Gates under autograd, forward mode, torch.func, torch.compile, export, and as modules."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common import DEFAULTS, OTHERS, Case, every_dtype
from torch import Tensor, nn

import mishkit as mk
from mishkit.functions import ACTIVATIONS

CASES = DEFAULTS + OTHERS
every_case = pytest.mark.parametrize("case", CASES, ids=str)
LIMITED: dict[str, Any] = {"limit": 1.5, "offset": 1.0}


def called(case: Case, **options: Any) -> Any:
    named = {p.name: v for p, v in zip(case.a.parameters, case.parameters, strict=True)}
    return lambda g, u: mk.gate(g, u, case.a.name, **named, **options)


def inputs(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Away from the kinks of lines and from the limits."""
    count = torch.Size(shape).numel()
    g = torch.linspace(-4.13, 4.31, count, dtype=dtype).view(shape)
    u = torch.linspace(2.77, -2.93, count, dtype=dtype).view(shape)
    return g.requires_grad_(), u.requires_grad_()


@every_case
@pytest.mark.parametrize("options", [{}, LIMITED], ids=["free", "limited"])
def test_derivatives(case: Case, options: dict[str, Any]) -> None:
    f, (g, u) = called(case, **options), inputs(13)
    assert torch.autograd.gradcheck(f, (g, u), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, (g, u))


def test_forward_over_reverse_and_third_derivatives() -> None:
    f, (g, u) = mk.gate, inputs(5)
    assert torch.autograd.gradgradcheck(f, (g, u), check_fwd_over_rev=True)
    derivative = f(g, u).sum()
    for _ in range(3):
        (gradient,) = torch.autograd.grad(derivative, g, create_graph=True)
        derivative = gradient.sum()
    want = u.detach() * torch.func.vmap(
        torch.func.grad(torch.func.grad(torch.func.grad(lambda x: x * torch.sigmoid(x))))
    )(g.detach())
    torch.testing.assert_close(gradient.detach(), want)


def test_u_may_depend_on_g() -> None:
    """No path is counted twice, in the second derivative either."""
    (g, _) = inputs(7)
    assert torch.autograd.gradgradcheck(lambda g: mk.gate(g, g * g), (g,))
    assert torch.autograd.gradgradcheck(lambda g: mk.gate(g, g), (g,))


@pytest.mark.parametrize("which", [0, 1])
def test_one_needs_a_gradient(which: int) -> None:
    tensors = [t.detach() for t in inputs(9)]
    tensors[which].requires_grad_()
    (gradient,) = torch.autograd.grad(mk.gate(*tensors).sum(), tensors[which], create_graph=True)
    want = torch.autograd.grad((F.silu(tensors[0]) * tensors[1]).sum(), tensors[which])[0]
    torch.testing.assert_close(gradient, want)


@pytest.mark.parametrize("in_dims", [(0, 0), (1, None), (None, 0)], ids=str)
def test_vmap(in_dims: Any) -> None:
    g, u = (t.detach() for t in inputs(4, 4))
    given = [t[0] if dim is None else t for t, dim in zip((g, u), in_dims, strict=True)]
    got = torch.func.vmap(mk.gate, in_dims)(*given)
    want = torch.func.vmap(lambda g, u: F.silu(g) * u, in_dims)(*given)
    torch.testing.assert_close(got, want)
    each = torch.func.vmap(torch.func.grad(lambda g, u: mk.gate(g, u).sum()))(g, u)
    s = torch.sigmoid(g)
    torch.testing.assert_close(each, u * (s + g * s * (1 - s)))


def test_hessian_and_jvp() -> None:
    g, u = (t.detach() for t in inputs(3))
    got = torch.func.hessian(lambda g, u: mk.gate(g, u).sum(), (0, 1))(g, u)
    want = torch.func.hessian(lambda g, u: (g * torch.sigmoid(g) * u).sum(), (0, 1))(g, u)
    torch.testing.assert_close(got, want)
    tangents = torch.randn(2, 3, dtype=torch.float64)
    got = torch.func.jvp(mk.gate, (g, u), tuple(tangents))
    torch.testing.assert_close(
        got, torch.func.jvp(lambda g, u: F.silu(g) * u, (g, u), (*tangents,))
    )


@pytest.mark.parametrize("part", ["second", "even"])
def test_derivatives_of_glu(part: Any) -> None:
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    f = lambda x: mk.glu(x, "mish", gate=part)  # noqa: E731
    assert torch.autograd.gradcheck(f, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, x)


# ---- trained parameters --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("options", [{}, LIMITED], ids=["free", "limited"])
@pytest.mark.parametrize("name", ["swish", "aptx"])
def test_trained_parameters(name: str, options: dict[str, Any], count: int) -> None:
    g, u = inputs(3, 5)
    shape = () if count == 1 else (count,)
    names = [parameter.name for parameter in ACTIVATIONS[name].parameters]
    values = [torch.rand(shape, dtype=torch.float64).add_(0.5).requires_grad_() for _ in names]

    def f(g: Tensor, u: Tensor, *values: Tensor) -> Tensor:
        return mk.gate(g, u, name, **dict(zip(names, values, strict=True)), **options)

    assert torch.autograd.gradcheck(f, (g, u, *values))
    assert torch.autograd.gradgradcheck(f, (g, u, *values))


@every_dtype
def test_trained_parameters_keep_g_and_u(dtype: torch.dtype) -> None:
    g, u = (torch.randn(5, 700).to(dtype).requires_grad_() * 1 for _ in range(2))
    module = mk.Gate("swish", beta=1.3, trainable=True, num_parameters=700)
    with mk.KeptBytes() as kept:
        y = module(g, u)
    wide = 8 if dtype == torch.float64 else 4
    assert kept.total <= 2 * g.nbytes + 700 * wide
    y.sum().backward()
    x, by = g.detach().double().requires_grad_(), u.detach().double()
    beta = torch.full((700,), 1.3, dtype=torch.float64, requires_grad=True)
    want = x * torch.sigmoid(beta * x) * by
    of_beta = torch.autograd.grad(want.sum(), beta)[0]
    torch.testing.assert_close(module.activation.beta.grad.double(), of_beta, rtol=1e-3, atol=1e-3)
    assert y.dtype == dtype


# ---- compiled and exported -----------------------------------------------------------------------


def compiled(function: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def test_compile() -> None:
    def f(x: Tensor) -> Tensor:
        g, u = x.chunk(2, -1)
        return mk.gate(g, u, "mish") + mk.glu(x, "swish", beta=1.702, gate="even", **LIMITED)

    x = torch.randn(3, 8, requires_grad=True)
    got, want = compiled(f)(x), f(x)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), x), torch.autograd.grad(want.sum(), x)
    )


def test_compiled_modules() -> None:
    for module in (mk.GLU("gelu"), mk.GLU("swish", trainable=True)):
        x = torch.randn(3, 8)
        torch.testing.assert_close(compiled(module)(x), module(x))


@pytest.mark.parametrize("name", ["silu", "gelu", "hard_mish"])
def test_export(name: str) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return mk.gate(*x.chunk(2, -1), name, limit=2.0, offset=1.0)

    x = torch.randn(3, 8)
    program = torch.export.export(Model(), (x,))
    assert "mishkit" not in str(program.graph)
    torch.testing.assert_close(program.module()(x), Model()(x))
    torch.testing.assert_close(torch.jit.trace(Model(), x)(x), Model()(x))


def test_fx_sees_one_call() -> None:
    class Model(nn.Module):
        def forward(self, g: Tensor, u: Tensor) -> Tensor:
            return mk.glu(torch.cat([mk.gate(g, u, "gelu", limit=3.0), u]), dim=0, gate="odd")

    traced = torch.fx.symbolic_trace(Model())
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert targets == [mk.gate, torch.cat, mk.glu]
    g, u = torch.randn(2, 4, 6)
    assert traced(g, u).equal(Model()(g, u))


# ---- recompute, modules --------------------------------------------------------------------------


def test_recompute_drops_the_product() -> None:
    torch.manual_seed(0)
    up, gate, down = nn.Linear(64, 256), nn.Linear(64, 256), nn.Linear(256, 64)
    packed = nn.Linear(64, 512)
    x = torch.randn(32, 64)
    weights = [p for layer in (up, gate, down, packed) for p in layer.parameters()]
    for forward in (
        lambda: down(mk.gate(gate(x), up(x))),
        lambda: down(mk.glu(packed(x))),
        lambda: down(mk.gate(gate(x), up(x), "swish", beta=torch.ones((), requires_grad=True))),
    ):
        gradients, totals = [], []
        for context in (torch.enable_grad(), mk.recompute()):
            with mk.KeptBytes(exclude=[x, *weights]) as kept, context:
                y = forward()
            totals.append(kept.total)
            y.sum().backward()
            gradients.append(down.weight.grad.clone())
            down.zero_grad()
        unit = 32 * 256 * 4
        assert torch.equal(*gradients)
        assert totals[0] - totals[1] == unit and totals[1] // unit == 2


def test_modules_are_copied_pickled_and_shown() -> None:
    for module in (mk.Gate("hard_mish", k=4.0), mk.GLU("gelu", 1, gate="second", limit=5.0)):
        x = torch.randn(2, 4, 6)
        given = (x, x) if isinstance(module, mk.Gate) else (x,)
        want = module(*given)
        for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert again(*given).equal(want)
            assert repr(again) == repr(module)
        assert not module.state_dict()
    assert "dim=1, gate='second', limit=5.0" in repr(mk.GLU("gelu", 1, gate="second", limit=5.0))
    trained = mk.Gate("aptx", trainable=True)
    assert set(trained.state_dict()) == {
        f"activation.{name}" for name in ("alpha", "beta", "gamma")
    }


def test_the_activation_of_a_module_can_be_swapped_and_hooked() -> None:
    module = nn.Sequential(mk.GLU("silu"))
    x = torch.randn(3, 8)
    mk.swap(module, {"silu": "mish"})
    torch.testing.assert_close(module(x), mk.glu(x, "mish"))
    mk.swap(module, {"mish": nn.Tanh})
    g, u = x.chunk(2, -1)
    torch.testing.assert_close(module(x), torch.tanh(g) * u)
    mk.unswap(module)
    assert module(x).equal(mk.glu(x))
    seen = []
    module[0].activation.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(module(x), mk.glu(x))
    assert seen == [1]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_only_torch_can_compute() -> None:
    g = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)], layout=torch.jagged)
    got = mk.gate(g, torch.ones_like(g))
    for part, of_g in zip(got.unbind(), g.unbind(), strict=True):
        torch.testing.assert_close(part, F.silu(of_g))
