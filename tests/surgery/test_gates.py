"""Gates in models: the audit sees them, `lean` and `swap` compute them in one pass."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mishkit as mk
from mishkit.surgery.deferred import Deferred, deferred


class Separate(nn.Module):
    """As LlamaMLP."""

    def __init__(self, act: Any = None) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(16, 48), nn.Linear(16, 48)
        self.down_proj, self.act_fn = nn.Linear(48, 16), act or nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Packed(nn.Module):
    """As Phi3MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(16, 96), nn.Linear(48, 16)
        self.activation_fn = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * self.activation_fn(gate))


class Method(nn.Module):
    """As GEGLU of diffusers."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.out = nn.Linear(16, 96), nn.Linear(48, 16)

    def gelu(self, gate: Tensor) -> Tensor:
        return F.gelu(gate)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(x * self.gelu(gate))


class Experts(nn.Module):
    """A mixture: an expert has only the tokens that are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 2)
        self.both = nn.Parameter(torch.randn(2, 96, 16) * 0.2)
        self.down = nn.Parameter(torch.randn(2, 16, 48) * 0.2)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).max(-1)
        y = torch.zeros_like(x)
        for expert in range(2):
            rows = (chosen == expert).nonzero()[:, 0]
            gate, up = F.linear(x[rows], self.both[expert]).chunk(2, -1)
            inner = F.linear(self.act_fn(gate) * up, self.down[expert])
            y = y.index_add(0, rows, inner * weights[rows, None])
        return y


class AsFunction(Separate):
    """With a function where the others have a module."""

    def __init__(self) -> None:
        super().__init__()
        del self.act_fn
        self.act_fn = F.silu


MODELS: dict[str, Callable[[], nn.Module]] = {
    "separate": Separate,
    "packed": Packed,
    "method": Method,
    "experts": Experts,
    "function": AsFunction,
    "relu": lambda: Separate(nn.ReLU()),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def network(make: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), make(), make())


def tokens(count: int = 96) -> Tensor:
    return torch.randn(count, 16, generator=torch.Generator().manual_seed(0))


def step(model: nn.Module) -> list[Tensor]:
    y = model(tokens())
    return [y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))]


def kept(model: nn.Module) -> int:
    with mk.KeptBytes(exclude=[*model.parameters()]) as counted:
        y = model(tokens())
    del y
    return counted.total


def assert_close(got: list[Tensor], want: list[Tensor]) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def nodes(model: nn.Module) -> set[str]:
    """The names of all nodes of the graph."""
    names, todo = set(), [model(tokens()).grad_fn]
    while todo:
        node = todo.pop()
        names.add(type(node).__name__)
        with suppress(RuntimeError):  # torch 2.10 does not tell those of an autograd.Function
            todo += [before for before, _ in node.next_functions if before is not None]
    return names


# ---- audit ---------------------------------------------------------------------------------------


@every_model
def test_the_audit_sees_gates(make: Callable[[], nn.Module]) -> None:
    sites = mk.audit(network(make), tokens()).sites
    assert len(sites) == 2 and all(site.gate for site in sites)
    assert "of a gate" in str(mk.audit(network(make), tokens()))


def test_the_audit_sees_our_own_gates() -> None:
    model = nn.Sequential(nn.Linear(16, 96), mk.GLU("swish", beta=1.7), nn.Linear(48, 16))
    report = mk.audit(model, tokens())
    (site,) = report.sites
    assert (site.how, site.function, site.kept) == ("gate", "swish", 96 * 96 * 4)
    assert "a gate needs both inputs, and keeps nothing else" in site.reason
    mk.swap(model, {"swish": "mish"})
    assert mk.audit(model, tokens()).sites[0].function == "mish"


def test_what_is_no_gate() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.linear, self.how = nn.SiLU(), nn.Linear(16, 16), ""

        def forward(self, x: Tensor) -> Tensor:
            y, x = self.act(self.linear(x)), x * 1
            if self.how == "used twice":
                return y * x + y
            if self.how == "squared":
                return y * y
            if self.how == "scaled":
                return y * 2.0
            if self.how == "broadcast":
                return y * x[:, :1]
            return self.linear(y)

    model = Model()
    for model.how in ("", "used twice", "squared", "scaled", "broadcast"):
        (site,) = mk.audit(model, tokens()).sites
        assert not site.gate, model.how
    for model.how in ("", "used twice", "squared", "scaled", "broadcast"):
        want = step(model)
        mk.swap(model, {"silu": mk.gate})  # by hand, where it does not fit: still right
        assert_close(step(model), want)
        mk.unswap(model)


# ---- lean and swap -------------------------------------------------------------------------------


@every_model
def test_lean(make: Callable[[], nn.Module]) -> None:
    model = network(make)
    want, before, keys = step(model), kept(model), list(model.state_dict())
    report = mk.lean(model, tokens())
    assert len(report.changed or ()) == 2
    assert {"GateBackward"} <= nodes(model)
    assert_close(step(model), want)
    assert kept(model) < before
    assert list(model.state_dict()) == keys
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert "GateBackward" in nodes(again)
        assert_close(step(again), want)
        mk.unswap(again)
        assert "GateBackward" not in nodes(again)
    mk.unswap(model)
    assert "GateBackward" not in nodes(model)
    assert_close(step(model), want)
    assert kept(model) == before
    pickle.loads(pickle.dumps(model))


def test_two_units_are_kept() -> None:
    """g and u; not f(g), and with recompute not the product."""
    model = Separate()
    unit, x = 96 * 48 * 4, 96 * 16 * 4
    mk.swap(model, {"silu": mk.gate})
    assert kept(model) == 3 * unit + x
    mk.unswap(model)
    mk.lean(model, tokens())
    assert kept(model) <= 2 * unit + 2 * x


@pytest.mark.parametrize("name", ["separate", "packed", "experts", "function", "relu"])
def test_swap(name: str) -> None:
    model = network(MODELS[name])
    want = step(model)
    function = {"packed": "gelu", "relu": "relu"}.get(name, "silu")
    done = mk.swap(model, {function: mk.gate})
    assert len(done) == 2 and "GateBackward" in nodes(model)
    assert_close(step(model), want)
    assert not mk.swap(model, {"mish": "silu"})
    mk.swap(model, {function: "mish"})  # known for what they compute
    assert "GateBackward" not in nodes(model)
    mk.unswap(model)
    assert_close(step(model), want)


def test_swap_refuses_what_a_gate_cannot_compute() -> None:
    with pytest.raises(ValueError, match="no such function"):
        mk.swap(Separate(nn.Tanh()), {"tanh": mk.gate})
    with pytest.raises(ValueError, match="works in place"):
        mk.swap(Separate(nn.SiLU(inplace=True)), {"silu": mk.gate})
    with pytest.raises(ValueError, match="trained parameters"):
        mk.swap(Separate(mk.Swish(trainable=True)), {"swish": mk.gate})


def test_hooks_and_wrapped_linears_keep_working() -> None:
    class Adapter(nn.Module):
        """As LoRA wraps a layer."""

        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.low = base, nn.Linear(16, 48, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.low(x)

    model = network(Separate)
    model[1].up_proj = Adapter(model[1].up_proj)
    seen: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    want = step(model)
    before, seen[:] = list(seen), []
    mk.lean(model, tokens())
    seen[:] = []
    assert_close(step(model), want)
    assert seen == before


def test_a_hook_may_change_what_the_activation_returns() -> None:
    model = network(Separate)
    for block in model[1:]:
        block.act_fn.register_forward_hook(lambda module, args, y: y * 2 + 1)
    want = step(model)
    mk.swap(model, {"silu": mk.gate})
    assert_close(step(model), want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    model = network(Separate)

    def gradients() -> Tensor:
        with torch.autocast("cpu", dtype):
            loss = model(tokens()).float().square().mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])

    want = gradients()
    mk.lean(model, tokens())
    assert (gradients() - want).norm() < 0.03 * want.norm()


def test_compile_vmap_and_checkpoint() -> None:
    model = network(Separate)
    want = step(model)
    mk.swap(model, {"silu": mk.gate})
    torch._dynamo.reset()
    assert_close(step(torch.compile(model, fullgraph=True, backend="aot_eager")), want)
    each = torch.func.vmap(model)(tokens().view(8, 12, 16)).flatten(0, 1)
    torch.testing.assert_close(each, want[0], rtol=1e-4, atol=1e-5)
    x = tokens().requires_grad_()
    again = checkpoint(model, x, use_reentrant=False)
    torch.autograd.grad(again.sum(), x)
    program = torch.export.export(model, (tokens(),))
    assert "mishkit" not in str(program.graph)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert_close(step(torch.load(buffer, weights_only=False)), want)


# ---- what waits ----------------------------------------------------------------------------------


def inputs() -> tuple[Tensor, Tensor]:
    return tuple(torch.randn(6, 8, requires_grad=True) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize(
    "product",
    [
        lambda y, u: y * u,
        lambda y, u: u * y,
        lambda y, u: torch.mul(y, u),
        lambda y, u: torch.multiply(u, y),
        lambda y, u: y.mul(u),
    ],
)
def test_products_are_gates(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    g, u = inputs()
    y = deferred(g, "silu")
    assert (y.shape, y.dtype, y.device, y.ndim) == (g.shape, g.dtype, g.device, 2)
    assert y.requires_grad and y.size(0) == 6
    z = product(y, u)
    assert type(z) is Tensor and type(z.grad_fn).__name__ == "GateBackward"
    want = torch.autograd.grad((F.silu(g) * u).sum(), (g, u))
    torch.testing.assert_close(torch.autograd.grad(z.sum(), (g, u)), want)


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, w = ctx.saved_tensors
        return grad @ w.T, x.T @ grad


USES: dict[str, Callable[[Tensor], Any]] = {
    "sum": lambda y: y + 1,
    "linear": lambda y: F.linear(y, torch.ones(3, 8)),
    "view": lambda y: y.view(8, 6)[1:],
    "scaled": lambda y: 3 * y,
    "squared": lambda y: y * y,
    "in a list": lambda y: torch.cat([y, y]),
    "out of place, then a product": lambda y: (y + 1) * y,
    "a Function": lambda y: Twice.apply(y, torch.ones(8, 2)),
    "in place": lambda y: torch.ones(6, 8).mul_(y),
    "float64": lambda y: y.double() * torch.ones(6, 8, dtype=torch.float64),
    "an operator": lambda y: torch.ops.aten.tanh.default(y),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_anything_else_computes_the_function(use: Callable[[Tensor], Any]) -> None:
    g, _ = inputs()
    got, want = use(deferred(g, "silu")), use(F.silu(g))
    assert type(got) is Tensor
    torch.testing.assert_close(got, want)
    gradients = [torch.autograd.grad(y.sum(), g)[0] for y in (got, want)]
    torch.testing.assert_close(*gradients)


def test_second_derivatives_through_a_function() -> None:
    g = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    w = torch.randn(8, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda g: Twice.apply(deferred(g, "silu"), w), g)


def test_without_gradients() -> None:
    g, u = (t.detach() for t in inputs())
    torch.testing.assert_close(deferred(g, "mish") * u, F.mish(g) * u)
    assert deferred(g, "mish").numpy().shape == (6, 8)
    torch.testing.assert_close(deferred(g, "mish").tolist(), F.mish(g).tolist())
    with torch.inference_mode():
        torch.testing.assert_close(deferred(torch.ones(2), "silu") * 2, 2 * F.silu(torch.ones(2)))


def test_an_input_that_was_written_over_is_noticed() -> None:
    g, u = inputs()
    x = g * 1
    y = deferred(x, "silu")
    x.mul_(2)
    with pytest.raises(RuntimeError, match="was modified by an inplace operation before that"):
        y * u
    with pytest.raises(RuntimeError, match="was modified by an inplace operation before that"):
        y + 1


def test_a_hook_on_the_tensor_is_called() -> None:
    g, u = inputs()
    y = deferred(g, "silu")
    seen = []
    y.register_hook(seen.append)
    (y * u).sum().backward()
    torch.testing.assert_close(seen, [u.detach()])


def test_what_is_not_supported_is_computed_at_once() -> None:
    assert type(deferred(torch.ones(2, dtype=torch.complex64), "silu")) is Tensor
    assert type(deferred(torch.ones(2), "silu")) is Deferred
