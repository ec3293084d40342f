"""`lean(recompute=True)`: the model's own forward pass keeps nothing that can be made again."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mishkit as mk
from mishkit.recompute.context import is_recomputing
from mishkit.recompute.model import is_attached


class Block(nn.Module):
    """conv, norm, activation; the gate is called as a function."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.act = act
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise ZeroDivisionError
        y = self.act(self.norm(self.conv(x)))
        return F.silu(y) * y


ACTS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "silu in place": lambda: nn.SiLU(inplace=True),
    "hardswish in place": lambda: nn.Hardswish(inplace=True),
    "relu in place": lambda: nn.ReLU(inplace=True),
    "leaky relu": nn.LeakyReLU,
    "ours": lambda: mk.Mish(save="output"),
    "ours in place": lambda: mk.Mish(inplace=True),
}


def network(act: Callable[[], nn.Module] = nn.SiLU) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [Block(act()), nn.Dropout(0.2, inplace=True), Block(act())]
    return nn.Sequential(nn.Conv2d(3, 8, 1), *blocks, nn.Flatten(), nn.Linear(8 * 64, 4))


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def kept(model: nn.Module, x: Tensor) -> int:
    with mk.KeptBytes(exclude=[*model.parameters(), *model.buffers(), x]) as counted:
        model(x)
    return counted.total


def step(model: nn.Module, run: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """The output and the gradients."""
    torch.manual_seed(1)
    y = (run or model)(images())
    return [y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))]


def assert_close(got: list[Tensor], want: list[Tensor]) -> None:
    """To the rounding of our kernels, which are not torch's."""
    for a, b in zip(got, want, strict=True):
        assert torch.linalg.vector_norm(a - b) <= 1e-5 * (torch.linalg.vector_norm(b) + 1e-2)


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_a_step(act: Callable[[], nn.Module]) -> None:
    """Less is kept, as the report says, to the byte; gradients are those of the inputs."""
    model, plain = network(act), network(act)
    before = kept(plain, images())
    report = mk.lean(model, images(), recompute=True)
    assert report.recomputes and report.kept == before
    assert report.lean == report.after_lean == kept(model, images()) < 0.75 * before
    assert str(report).splitlines()[0].startswith(f"changed {len(report.changed or ()) or 'none'}")
    exact = copy.deepcopy(plain)
    mk.swap(exact, {"mish": ("mish", {"save": "input", "inplace": False})})
    assert_close(step(model), step(exact))


def test_recomputing_itself_changes_no_bit() -> None:
    model, plain = network(mk.Mish), network(mk.Mish)
    mk.lean(model, images(), recompute=True)
    assert all(torch.equal(a, b) for a, b in zip(step(model), step(plain), strict=True))


def test_copies_go_on_and_unswap_ends_it() -> None:
    model = network()
    before, keys, lines = kept(model, images()), list(model.state_dict()), str(model)
    report = mk.lean(model, images(), recompute=True)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "torch.save": torch.load(file, weights_only=False),
        "ema": torch.optim.swa_utils.AveragedModel(model).module,
    }
    for name, m in {"itself": model, **copies}.items():
        assert list(m.state_dict()) == keys, name
        assert kept(m, images()) == report.lean, name
        mk.unswap(m)
        assert kept(m, images()) == before and str(m) == lines, name
        assert not m._forward_pre_hooks and not m._forward_hooks, name
        assert not m._forward_hooks_always_called, name


def test_again_and_within_another() -> None:
    """The second call changes nothing more; a model within a model stands back."""
    model = network()
    first = mk.lean(model, images(), recompute=True)
    second = mk.lean(model, images(), recompute=True)
    assert second.lean == first.lean == kept(model, images())
    assert len(model._forward_pre_hooks) == 1
    block = network()
    mk.lean(block[1], torch.randn(4, 8, 8, 8), recompute=True)
    mk.lean(block, images(), recompute=True)
    assert kept(block, images()) == first.lean
    assert_close(step(block), step(model))


def test_a_module_in_two_places_is_replaced_by_one() -> None:
    act = nn.SiLU()
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), act, nn.Conv2d(8, 8, 1), act)
    mk.lean(model, images(), recompute=True)
    assert type(model[2]) is mk.SiLU and model[2] is model[4]


def test_an_error_leaves_nothing_behind() -> None:
    model = network()
    report = mk.lean(model, images(), recompute=True)
    model[3].fails = True
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            model(images())
    model[3].fails = False
    x = torch.randn(1000, requires_grad=True)
    with mk.KeptBytes() as counted:
        F.silu(F.mish(x))
    assert counted.total == 2 * 4000  # as ever
    assert kept(model, images()) == report.lean

    def refuse(module: nn.Module, inputs: object) -> None:
        raise ZeroDivisionError

    model.register_forward_pre_hook(refuse, prepend=True)  # before ours
    with pytest.raises(ZeroDivisionError):
        model(images())


def test_a_model_that_fails_is_left_as_it_was() -> None:
    model = network()
    before = str(model)
    with pytest.raises(RuntimeError):
        mk.lean(model, torch.randn(4, 5, 8, 8), recompute=True)
    assert str(model) == before and not is_attached(model)


def test_nothing_to_save() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    before = str(model)
    with pytest.warns(UserWarning, match="nothing that this model keeps can be recomputed"):
        report = mk.lean(model, torch.randn(3, 4), recompute=True)
    assert report.changed == () and report.lean == report.kept
    assert str(model) == before and not is_attached(model)


def test_in_place_is_another_way() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        mk.lean(network(), images(), recompute=True, inplace=True)


def test_an_audit_sees_the_model_without() -> None:
    model = network(mk.Mish)
    before = mk.audit(model, images())
    mk.lean(model, images(), recompute=True)
    assert mk.audit(model, images()) == before and is_attached(model)


def test_each_thread_for_itself() -> None:
    model, plain = network(mk.Mish), network(mk.Mish)
    mk.lean(model, images(), recompute=True)
    results: list[list[Tensor]] = []

    def work() -> None:
        y = model.eval()(images())
        results.append([y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    y = plain.eval()(images())
    want = [y, *torch.autograd.grad(y.square().sum(), list(plain.parameters()))]
    for got in results:
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.compile(model, backend="aot_eager")


def saved_on_cpu(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return model(x)


RUNS: dict[str, Callable[[nn.Module], Callable[[Tensor], Tensor]]] = {
    "checkpoint": lambda model: lambda x: checkpoint(model, x, use_reentrant=False),
    "save_on_cpu": lambda model: lambda x: saved_on_cpu(model, x),
    "checkpoint of a block": lambda model: (
        lambda x: model[2:](checkpoint(model[1], model[0](x), use_reentrant=False))
    ),
    "autocast": lambda model: lambda x: autocast(model, x),
    "compiled": compiled,
}


def autocast(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(x).float()


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_beside_other_tools(
    run: Callable[[nn.Module], Callable[[Tensor], Tensor]], fresh_compiler: None
) -> None:
    model, plain = network(mk.Mish), network(mk.Mish)
    mk.lean(model, images(), recompute=True)
    got, want = step(model, run(model)), step(plain, run(plain))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_reentrant_checkpoints() -> None:
    """Which only `backward` can go through."""
    results = []
    for change in (lambda model: None, lambda model: mk.lean(model, images())):
        model = network(mk.Mish)
        change(model)
        torch.manual_seed(1)
        y = checkpoint(model, images().requires_grad_(), use_reentrant=True)
        y.square().sum().backward()
        results.append([y, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_where_it_stands_back() -> None:
    model, plain = network(mk.Mish).eval(), network(mk.Mish).eval()
    mk.lean(model, images(), recompute=True)
    with torch.no_grad():
        assert torch.equal(model(images()), plain(images()))
    with torch.inference_mode():
        assert torch.equal(model(images()), plain(images()))
    # torch.func refuses hooks on saved tensors.
    gradient = torch.func.grad(lambda x: model(x).sum())(images())
    assert torch.equal(gradient, torch.func.grad(lambda x: plain(x).sum())(images()))
    program = torch.export.export(model, (images(),), strict=False)
    torch.testing.assert_close(program.module()(images()), plain(images()))


def test_gradients_of_gradients_and_accumulated_ones() -> None:
    model, plain = network(mk.Mish).double(), network(mk.Mish).double()
    mk.lean(model, images().double(), recompute=True)
    results = []
    for m in (model, plain):
        torch.manual_seed(2)
        x = images().double().requires_grad_()
        (first,) = torch.autograd.grad(m(x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        for _ in range(2):
            m(x).square().sum().backward()
        results.append([first, second, *(p.grad for p in m.parameters())])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_an_error_in_the_last_pass_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    before = str(model)

    def fails(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(importlib.import_module("mishkit.surgery.lean"), "watch", fails)
    with pytest.raises(ZeroDivisionError):
        mk.lean(model, images())
    assert str(model) == before and not is_attached(model)


def test_an_error_in_a_forward_pass_ends_it() -> None:
    model = network()
    mk.lean(model, images())
    model[1].fails = True
    with pytest.raises(ZeroDivisionError):
        model(images())
    assert not is_recomputing()


# ---- a budget ------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.95, 0.8, 0.65])
def test_a_budget(budget: float) -> None:
    """It is met, to the byte that the report says, with bit-identical gradients."""
    model, plain = network(), network()
    report = mk.lean(model, images(), recompute=True, budget=budget)
    assert report.lean == kept(model, images()) <= budget * report.kept
    everything = mk.lean(network(), images(), recompute=True)
    assert everything.lean <= report.lean
    assert_close(step(model), step(plain))
    exact = copy.deepcopy(model)
    mk.unswap(exact)
    assert is_attached(model) and not is_attached(exact)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert kept(copied, images()) == report.lean


def test_a_budget_is_used_up() -> None:
    """Of the last kind of tensors, only as many are dropped as it takes."""

    def blocks() -> nn.Sequential:
        layers = [[nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), mk.SiLU()] for _ in range(8)]
        return nn.Sequential(*(layer for block in layers for layer in block), nn.Conv2d(8, 8, 1))

    x, size = torch.randn(4, 8, 16, 16), 4 * 8 * 16 * 16 * 4
    for budget in (0.95, 0.8, 0.55):
        report = mk.lean(blocks(), x, budget=budget)
        assert budget * report.kept - size < report.lean <= budget * report.kept


def test_budgets_are_monotone() -> None:
    shares = [
        mk.lean(network(), images(), recompute=True, budget=b) for b in (0.6, 0.7, 0.85, 0.99)
    ]
    assert [r.lean for r in shares] == sorted(r.lean for r in shares)
    curve = shares[0].curve
    assert [kept for kept, _ in curve] == sorted((kept for kept, _ in curve), reverse=True)
    assert [seconds for _, seconds in curve] == sorted(seconds for _, seconds in curve)
    assert curve[0][1] == 0 and curve[-1][0] <= shares[0].lean


class Attention(nn.Module):
    """Linear layers whose outputs attention keeps, with a norm before and a sum behind."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.query, self.key, self.value = (nn.Linear(32, 32, bias=bias) for _ in range(3))
        self.out = nn.Linear(32, 32, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        heads = [
            layer(y).unflatten(-1, (4, 8)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        y = F.scaled_dot_product_attention(*heads)
        return x + self.out(y.transpose(1, 2).flatten(2))


def attentions(bias: bool = True) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(*(Attention(bias) for _ in range(3))), torch.randn(2, 64, 32)


@pytest.mark.parametrize("bias", [False, True])
def test_products_run_again_for_a_small_budget(bias: bool) -> None:
    """Of linear layers, where nothing cheaper is left; with bit-identical gradients."""
    (plain, x), (model, _) = attentions(bias), attentions(bias)
    cheap = mk.lean(attentions(bias)[0], x)
    budget = cheap.lean - 3 * x.nbytes
    report = mk.lean(model, x, budget=budget)
    assert kept(model, x) == report.lean <= budget
    got, want = (
        torch.autograd.grad(m(x).square().sum(), list(m.parameters())) for m in (model, plain)
    )
    assert all(map(torch.equal, got, want))
    costs = [seconds for _, seconds in report.curve]
    assert costs == sorted(costs) and report.curve[-1][0] < cheap.lean


def test_products_do_not_run_again_without_need() -> None:
    model, x = attentions()
    report = mk.lean(attentions()[0], x)
    assert mk.lean(model, x, budget=report.lean).lean == report.lean
    with forbidden(torch.mm, torch.addmm):
        loss = model(x).square().sum()
        loss.backward()


@contextmanager
def forbidden(*functions: Any) -> Iterator[None]:
    """Within it, none of these functions of torch may be called from Python, as recipes do."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("called")

    with pytest.MonkeyPatch.context() as patch:
        for function in functions:
            patch.setattr(torch, function.__name__, refuse)
        yield


def test_one_product_at_most_runs_again_for_a_tensor() -> None:
    """A chain of linear layers does not depend on its first input alone."""
    torch.manual_seed(0)
    model, x = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8))), torch.randn(128, 64)
    report = mk.lean(model, x, budget=0.6)
    assert 3 * x.nbytes <= report.lean <= 0.6 * report.kept  # every second one is kept
    got = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    mk.unswap(model)
    assert all(map(torch.equal, got, torch.autograd.grad(model(x).sum(), list(model.parameters()))))


def test_a_budget_in_bytes() -> None:
    model = network()
    most = mk.audit(model, images()).kept * 3 // 4
    report = mk.lean(model, images(), recompute=True, budget=most)
    assert kept(model, images()) == report.lean <= most


def test_a_budget_that_needs_nothing() -> None:
    model = network()
    before = str(model)
    report = mk.lean(model, images(), recompute=True, budget=10**9)
    assert report.lean == report.kept and not report.changed
    assert str(model) == before and not is_attached(model)


def test_a_budget_that_cannot_be_met() -> None:
    model = network()
    with pytest.warns(UserWarning, match="more than the budget of 100 B"):
        report = mk.lean(model, images(), recompute=True, budget=100)
    assert report.lean == kept(model, images()) < report.kept
    assert report.lean == mk.lean(network(), images(), recompute=True).lean


def test_a_budget_leaves_the_model_as_it_was() -> None:
    model = network().train()
    state = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    mk.lean(model, images(), recompute=True, budget=0.8)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("options", [{"budget": 0.5, "recompute": False}, {"budget": 0}], ids=str)
def test_wrong_budgets(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="budget must be positive, and needs recompute=True"):
        mk.lean(network(), images(), **options)
