"""Which calls an audit names, and that `lean` and `lean_functional` bring what it promises."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import kept_in_graph
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mishkit as mk

ROWS, C = 4, 32
FULL, BITS = ROWS * C * 4, ROWS * C // 8


class Does(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def between(*middle: nn.Module, width: int = C) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, C), *middle, nn.Linear(width, 4))


def kept(model: nn.Module, x: Tensor) -> int:
    """Bytes, by hooks: the graph of what is scripted or recomputed can't be walked."""
    with mk.KeptBytes(exclude=[*model.parameters(), x]) as count:
        output = model(x)
    del output
    return count.total


def rows() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(ROWS, 8)


def gate(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def glu(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return a * function(b)

    return glu


def even_and_odd(x: Tensor) -> Tensor:
    return x[:, ::2] * torch.sigmoid(x[:, 1::2])


def turned(x: Tensor) -> Tensor:
    x = x.reshape(-1, 4, 4)
    return (x * torch.sigmoid(x.mT)).flatten(1).reshape(-1, C)


def written_between(x: Tensor) -> Tensor:
    x = x * 1
    s = torch.sigmoid(x)
    return x.add_(1) * s


def gate_written(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x).add_(1)


@pytest.mark.parametrize(
    ("function", "width"),
    [
        (gate(torch.sigmoid), C // 2),
        (gate(lambda b: torch.tanh(F.softplus(b))), C // 2),
        (even_and_odd, C // 2),
        (turned, C),
        (written_between, C),
        (gate_written, C),
    ],
)
def test_a_gate_is_no_silu(function: Callable[[Tensor], Tensor], width: int) -> None:
    report = mk.audit(between(Does(function), width=width), rows())
    assert not {"silu", "mish"} & {site.function for site in report.sites}
    assert all(site.how == "call" for site in report.sites)


def test_only_a_module_that_does_nothing_else_can_be_swapped() -> None:
    def more(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x) + 1

    (alone,) = mk.audit(between(Does(lambda x: x * torch.sigmoid(x))), rows()).sites
    (beside,) = mk.audit(between(Does(more)), rows()).sites
    (around,) = mk.audit(Does(lambda x: x * torch.sigmoid(x)), rows().requires_grad_()).sites
    assert "mishkit.swap it" in alone.reason and "saves" in alone.reason
    assert "mishkit.swap" not in beside.reason and "mishkit.swap" not in around.reason
    model, x = between(Does(lambda x: x * torch.sigmoid(x))), rows()
    wanted = model(x)
    mk.swap(model, {alone.name: alone.function})
    torch.testing.assert_close(model(x), wanted)


# ---- somebody's autograd.Function ----


class MemoryMish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.mul(torch.tanh(F.softplus(x)))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0]


class SwishWithContext(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0]


class Recomputing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            return F.gelu(F.silu(inner)).detach()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0]


class CallsOurs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return mk.mish(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0]


class Inheriting(MemoryMish):
    pass


class Decorated(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return F.silu(x)

    backward = MemoryMish.backward


bound_early = MemoryMish.apply


@pytest.mark.parametrize(
    ("apply", "name"),
    [
        (lambda x: MemoryMish.apply(x), "MemoryMish"),
        (lambda x: bound_early(x), "MemoryMish"),
        (lambda x: SwishWithContext.apply(x), "SwishWithContext"),
        (lambda x: Recomputing.apply(x), "Recomputing"),
        (lambda x: Inheriting.apply(x), "Inheriting"),
        (lambda x: Decorated.apply(x), "Decorated"),
        (lambda x: CallsOurs.apply(x), "CallsOurs"),
    ],
)
def test_an_autograd_function_is_one_site(apply: Callable[[Tensor], Tensor], name: str) -> None:
    model = between(Does(apply))
    report = mk.audit(model, rows())
    (site,) = report.sites
    assert (site.name, site.function, site.how) == ("1", name, "autograd.Function")
    assert site.line.startswith(__file__) and site.advice == "leave" and not report.lines
    assert "mishkit.swap it for what it computes" in site.reason
    assert site.kept == FULL and report.kept == kept_in_graph(model, rows()) == report.lean


def test_an_autograd_function_that_is_used_twice_is_one_site_a_module() -> None:
    def twice(x: Tensor) -> Tensor:
        return MemoryMish.apply(MemoryMish.apply(x))

    (site,) = mk.audit(between(Does(twice)), rows()).sites
    assert site.calls == 2 and "mishkit.swap" not in site.reason


# ---- TorchScript ----


def scripted_module() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(C, C), nn.SiLU(), nn.Linear(C, C)))


def traced_module() -> nn.Module:
    module = nn.Sequential(nn.Linear(C, C), nn.GELU(), nn.Linear(C, C))
    return torch.jit.trace(module, torch.randn(2, C))


def scripted_function() -> nn.Module:
    function = torch.jit.script(_to_be_scripted)

    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(C, C), nn.Linear(C, C)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(function(self.inner(x)))

    return Calls()


def _to_be_scripted(x: Tensor) -> Tensor:
    return F.silu(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("build", [scripted_module, traced_module, scripted_function])
def test_nothing_is_promised_for_what_is_scripted(build: Callable[[], nn.Module]) -> None:
    model, x = between(build()), rows()
    report = mk.lean(model, x, recompute=False)
    (site,) = report.sites
    assert (site.name, site.advice) == ("1", "leave")
    assert site.reason in ("as it is scripted", "as lean_functional does not see how it is called")
    with mk.lean_functional(report):
        assert kept(model, x) == report.lean == report.kept


# ---- what `lean_functional` changes ----


class Shared(nn.Module):
    """A line of code for all activations, as in transformers' activations.py."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


def shared_function(x: Tensor) -> Tensor:
    return F.silu(x)


class TwoOnALine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        # The first one's output is kept by the product, the second one's too.
        return F.silu(x) * F.gelu(x + 1)


def shared_by_modules() -> nn.Module:
    return between(Shared(), nn.Linear(C, C), Shared(), nn.Dropout(0.5))


def shared_by_a_function() -> nn.Module:
    return between(Does(shared_function), nn.Linear(C, C), Does(shared_function), nn.Dropout(0.5))


def on_a_line() -> nn.Module:
    return between(TwoOnALine())


def in_place() -> nn.Module:
    return between(Does(lambda x: F.silu(x, inplace=True)))


def with_modules() -> nn.Module:
    return between(nn.GELU(), nn.Linear(C, C), Shared(), nn.Linear(C, C), nn.Mish())


def hidden_in_a_list() -> nn.Module:
    hidden = [nn.SiLU()]
    return between(Does(lambda x: hidden[0](x)))


def by_keyword() -> nn.Module:
    return between(Does(lambda x: F.silu(input=x)))


def by_position() -> nn.Module:
    return between(Does(lambda x: F.softplus(x, 2.0)))


def as_an_operator() -> nn.Module:
    return between(Does(torch.ops.aten.silu.default))


def in_a_recomputed_part() -> nn.Module:
    inner = nn.Sequential(nn.Linear(C, C), Shared(), nn.Linear(C, C))
    return between(Does(lambda x: checkpoint(inner, x, use_reentrant=False)), Shared())


MODELS = [
    shared_by_modules, shared_by_a_function, on_a_line, in_place, with_modules, hidden_in_a_list,
    by_keyword, by_position, as_an_operator, in_a_recomputed_part,
]  # fmt: skip


@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_what_is_promised_is_what_comes(build: Callable[[], nn.Module]) -> None:
    model, x = build(), rows()
    plain, report = copy.deepcopy(model), mk.audit(model, x)
    assert kept(model, x) == report.kept
    assert sum(site.saving for site in report.sites) == report.kept - report.lean
    assert all((site.saving > 0) == (site.advice == "output") for site in report.sites)
    done = mk.lean(model, x, recompute=False)
    assert done.kept == report.kept and len(done.changed or ()) == sum(
        site.by == "lean" for site in report.sites
    )
    assert kept(model, x) == report.after_lean
    with mk.lean_functional(done):
        assert kept(model, x) == report.lean
        torch.manual_seed(2)
        y = model(x)
    y.square().mean().backward()  # outside, as is usual
    torch.manual_seed(2)
    plain(x).square().mean().backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.silu(x, inplace=True),
        lambda x: F.hardswish(x, inplace=True),
        lambda x: F.relu6(x, inplace=True),
        lambda x: F.mish(x, inplace=True),
        lambda x: F.leaky_relu_(x),
    ],
)
def test_calls_in_place_have_a_gradient(call: Callable[[Tensor], Tensor]) -> None:
    model = between(Does(call))
    (site,) = mk.audit(model, rows()).sites
    assert site.reason != "as no gradient passes here" and site.kept >= FULL
    assert mk.audit(model, rows()).kept == kept_in_graph(model, rows())
    assert site.function != "hardtanh"


@pytest.mark.parametrize(
    ("call", "function"),
    [
        (F.elu, "elu"),
        (lambda x: F.elu(x, 0.5), "elu"),
        (F.selu, "selu"),
        (lambda x: F.celu(x, 0.5), "celu"),
        (F.celu, "celu"),
    ],
)
def test_the_elus_are_told_apart(call: Callable[[Tensor], Tensor], function: str) -> None:
    (site,) = mk.audit(between(Does(call)), rows()).sites
    assert site.function == function


def test_only_the_advised_module_is_converted() -> None:
    model, x = shared_by_modules(), rows()
    report = mk.audit(model, x)
    assert [site.advice for site in report.sites] == ["output", "leave"]
    assert report.sites[0].line == report.sites[1].line
    kinds = []
    for module in (model[1], model[3]):
        module.register_forward_hook(lambda m, a, y: kinds.append(type(y.grad_fn).__name__))
    with mk.lean_functional(report):
        model(x)
    assert kinds == ["SavingOutputBackward", "SiluBackward0"]
    kinds.clear()
    with mk.lean_functional(report):
        copy.deepcopy(model)(x)  # not the model that was audited
    assert kinds == ["SiluBackward0"] * 2
    with pytest.raises(ValueError, match="was pickled does not know its model"):
        mk.lean_functional(pickle.loads(pickle.dumps(report))).__enter__()
    assert copy.deepcopy(report) == report


@pytest.mark.parametrize("with_report", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("backward_within", [True, False])
def test_checkpoints(with_report: bool, reentrant: bool, backward_within: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.act, self.outer = nn.Linear(C, C), Shared(), nn.Linear(C, C)
            self.recompute = False

        def part(self, x: Tensor) -> Tensor:
            return self.outer(F.gelu(self.inner(self.act(x))))

        def forward(self, x: Tensor) -> Tensor:
            if self.recompute:
                return checkpoint(self.part, x, use_reentrant=reentrant)
            return self.part(x)

    model, x = between(Block()), rows()
    report = mk.audit(model, x)  # before it is told to recompute
    model(x).square().mean().backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model[1].recompute = True
    with mk.lean_functional(report if with_report else None):
        loss = model(x).square().mean()
        if backward_within:
            loss.backward()
    if not backward_within:
        loss.backward()
    for p, grad in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["swish", "hard_mish", "aptx", "softplus"])
def test_calls_of_our_functions_with_parameters_have_lines_of_their_own(name: str) -> None:
    ours = getattr(mk, name)

    def first(x: Tensor) -> Tensor:
        return ours(x)

    def second(x: Tensor) -> Tensor:
        return ours(x)

    report = mk.audit(between(Does(first), nn.Linear(C, C), Does(second)), rows())
    lines = [site.line for site in report.sites]
    assert len(set(lines)) == 2 and all(line.startswith(__file__) for line in lines)
    assert [site.by for site in report.sites] == ["code", "code"]
    assert '2 with save="output" in the code' in str(report)


def test_lines_of_packages_whose_names_begin_alike(tmp_path: Any, monkeypatch: Any) -> None:
    (tmp_path / "torchlike.py").write_text(
        "import torch\ndef call(x):\n    return torch.nn.functional.silu(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import torchlike  # type: ignore[import-not-found]

    (site,) = mk.audit(between(Does(torchlike.call)), rows()).sites
    assert site.line == f"{tmp_path}/torchlike.py:3"


def test_another_thread_keeps_its_own_modules_in_lean_functional() -> None:
    model, x = shared_by_modules(), rows()
    report = mk.audit(model, x)
    nodes: list[str] = []

    def run() -> None:
        y = Shared()(torch.randn(2, 2, requires_grad=True))
        nodes.append(type(y.grad_fn).__name__)

    with mk.lean_functional(report):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert kept_in_graph(model, x) == report.lean
    assert nodes == ["SiluBackward0"]


# ---- what is said ----


def test_the_first_line_says_what_lean_has_changed() -> None:
    report = mk.lean(with_modules(), rows(), recompute=False)
    assert str(report).splitlines()[0] == (
        f"changed 2 of 3 sites: saves {2 * (FULL - BITS)} B; 1 is a call: see lean_functional"
    )
    assert report.changed == ("1", "5") and report.after_lean - report.lean == FULL - BITS
    assert "3 sites, 3 of which pay: 2 by lean, 1 within lean_functional" in str(report)
    nothing = mk.lean(between(nn.ReLU()), rows(), recompute=False)
    assert str(nothing).startswith("changed none of 1 site\n")
    assert "changed" not in str(mk.audit(between(nn.SiLU()), rows()))


def test_the_model_itself_is_held_by_nothing() -> None:
    model, x = nn.SiLU(), rows().requires_grad_()
    report = mk.lean(model, (x * 1), recompute=False)
    assert report.sites[0].advice == "leave" and report.changed == ()


def test_savings_of_sites_that_share_their_input_are_shared_out() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.left, self.right = (
                nn.SiLU(), nn.Mish(), nn.Linear(C, C), nn.Linear(C, C)
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            return self.left(self.a(x)) + self.right(self.b(x))

    report = mk.lean(between(Two()), rows(), recompute=False)
    assert all(site.saving > 0 for site in report.sites)
    assert sum(site.saving for site in report.sites) == report.kept - report.lean
    assert "-" not in str(report).replace("lean-", "")
