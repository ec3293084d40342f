"""Annealing a model: sites, schedules, states, what stays and what comes back."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mishkit as mk
from mishkit.surgery.anneal import Blend, BlendedFunction
from mishkit.surgery.slots import slots


class Attention(nn.Module):
    """With an activation in an attribute, as transformers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.act = F.gelu
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.act(x))


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.GELU(), Attention(), nn.SiLU(inplace=True))


RULES: dict[Any, Any] = {"gelu": "h_mish", nn.SiLU: ("hard_mish", {"k": 3})}


def after(anneal: mk.Anneal, steps: int) -> mk.Anneal:
    for _ in range(steps):
        anneal.step()
    return anneal


def test_every_site_goes_from_old_to_new() -> None:
    net, x = model(), torch.randn(5, 4)
    old, new = copy.deepcopy(net), copy.deepcopy(net)
    mk.swap(new, RULES)
    anneal = mk.Anneal(net, RULES, 4)
    assert anneal.sites == ["1", "2.act", "3"]
    assert isinstance(net[1], Blend) and isinstance(net[2].act, BlendedFunction)
    torch.testing.assert_close(net(x), old(x), rtol=1e-6, atol=1e-6)
    for step, t in enumerate((0.0, 0.25, 0.5, 0.75, 1.0, 1.0)):
        assert (anneal.fraction, anneal.done) == (t, step >= 4)
        for a, b, c in zip(old, new, net, strict=True):
            if isinstance(a, (nn.GELU, nn.SiLU)):
                want = (1 - t) * a(x.clone()) + t * b(x.clone())
                torch.testing.assert_close(c(x), want, rtol=1e-6, atol=1e-6)
        anneal.step()
    assert torch.equal(net(x), new(x)) and anneal.count == 4
    assert "t=1, SiLU(inplace=True) -> HardMish(k=3, inplace=True, save='copy')" in str(net)
    assert str(anneal) == "Anneal(3 sites, step 4 of 4, t=1)" and "t=1" in str(net[2].act)

    assert anneal.finish() == ["1", "2.act", "3"] and anneal.finish() == []
    assert str(net) == str(new) and torch.equal(net(x), new(x))
    assert sorted(mk.unswap(net)) == ["1", "2.act", "3"]
    assert str(net) == str(old) and net[2].act is F.gelu and torch.equal(net(x), old(x))


def test_finish_and_unswap_on_the_way() -> None:
    net = model()
    before = str(net)
    anneal = after(mk.Anneal(net, RULES, 10), 3)
    mk.unswap(net)
    assert str(net) == before
    assert anneal.finish() == [] and str(net) == before
    anneal = after(mk.Anneal(net, RULES, 10), 3)
    anneal.finish()
    assert anneal.done and anneal.fraction == 1 and type(net[1]) is mk.HMish


@pytest.mark.parametrize(
    ("schedule", "fractions"),
    [
        ("linear", [0, 0.25, 0.5, 0.75, 1]),
        ("cosine", [(1 - math.cos(math.pi * p / 4)) / 2 for p in range(5)]),
        (lambda p: p**2, [0, 1 / 16, 1 / 4, 9 / 16, 1]),
        (lambda p: max(0.5, p), [0.5, 0.5, 0.5, 0.75, 1]),
    ],
)
def test_schedules(schedule: Any, fractions: list[float]) -> None:
    anneal, seen = mk.Anneal(model(), RULES, 4, schedule), []
    for _ in range(5):
        seen.append(anneal.fraction)
        anneal.step()
    assert seen == pytest.approx(fractions, abs=1e-7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be a number of at least 1, not 0"),
        ({"steps": 2.5}, ValueError, r"not 2\.5"),
        ({"steps": True}, ValueError, "not True"),
        ({"schedule": "steep"}, ValueError, '"linear", "cosine" or a function, not \'steep\''),
        ({"schedule": lambda p: p / 2}, ValueError, r"must end with 1, not 0\.5"),
        ({"schedule": lambda p: 2 * p - 1}, ValueError, r"from 0 to 1, not -1\.0 for 0\.0"),
        ({"schedule": lambda p: math.nan}, ValueError, "from 0 to 1, not nan"),
        ({"model": "resnet"}, TypeError, "the model must be a module, not str"),
        ({"rules": {"tanh": "mish"}}, ValueError, "there is nothing in the model for"),
        ({"rules": {"gelu": "mesh"}}, ValueError, r"mishkit\.Anneal: .*did you mean"),
        ({"rules": {}}, ValueError, "nothing in the model"),
        ({"model": nn.GELU()}, ValueError, r"mishkit\.Anneal: the model itself"),
    ],
)
def test_what_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    net = model()
    before = str(net)
    with pytest.raises(error, match=message):
        mk.Anneal(**{"model": net, "rules": RULES, "steps": 3, **change})
    assert str(net) == before and net[2].act is F.gelu


def test_several_anneals_have_sites_of_their_own() -> None:
    net = model()
    first, second = mk.Anneal(net, {"1": "mish"}, 4), mk.Anneal(net, {nn.SiLU: "mish"}, 2)
    first.step(), second.step()
    assert (net[1].fraction, net[3].fraction) == (0.25, 0.5)
    for rules in ({"1": "h_mish"}, {Blend: "h_mish"}):
        with pytest.raises(ValueError, match='"1" is being annealed already'):
            mk.Anneal(net, rules, 4)
    second.finish()
    assert type(net[3]) is mk.Mish and isinstance(net[1], Blend)


# ---- parameters, states, copies ------------------------------------------------------------------


def trained_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 4), nn.SiLU(), nn.BatchNorm1d(4))


TRAINED: dict[Any, Any] = {"prelu": ("swish", {"trainable": True}), "silu": "aptx"}


def test_parameters_are_trained_and_keep_their_names() -> None:
    net = trained_model()
    keys, prelu = list(net.state_dict()), net[1].weight
    anneal = mk.Anneal(net, TRAINED, 4)
    added = ["1.new.beta"]
    assert sorted(net.state_dict()) == sorted(keys + added)
    names = dict(net.named_parameters())
    assert names["1.weight"] is prelu and names["1.new.beta"].requires_grad
    # What shows only its own activations has but these.
    assert [slot.name for slot in slots(net) if slot.known] == []

    for t in (0.0, 0.5, 1.0):
        net.zero_grad()
        net(torch.randn(6, 4)).square().sum().backward()
        old, new = names["1.weight"].grad, names["1.new.beta"].grad
        # Never None: DDP waits for every parameter.
        assert (old.abs().sum() > 0, new.abs().sum() > 0) == (t < 1, t > 0)
        anneal.step(), anneal.step()

    with torch.no_grad():
        names["1.new.beta"].fill_(1.5)
    net.double()
    assert net[1].weight.dtype == torch.float64 and prelu.dtype == torch.float64
    assert net(torch.randn(6, 4, dtype=torch.float64)).dtype == torch.float64
    anneal.finish()
    pure = {name.replace(".new", "") for name in added}
    assert set(net.state_dict()) == {*keys, *pure} - {"1.weight"}
    assert net[1].beta.item() == 1.5
    mk.unswap(net)
    assert list(net.state_dict()) == keys and net[1].weight is prelu


def test_the_state_dict_of_a_model_loads_before_within_and_after() -> None:
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    anneal = after(mk.Anneal(net, RULES, 4), 2)
    assert net.state_dict().keys() == before.keys()
    net.load_state_dict(before)
    model().load_state_dict(net.state_dict())
    anneal.finish()
    net.load_state_dict(before)


def test_what_parameters_are_now_counts() -> None:
    """Assigned to the old or the new activation: for the kernel, compiled code and a transform."""
    old, new = mk.Swish(), mk.APTx()
    net = nn.Sequential(old)
    after(mk.Anneal(net, {"swish": lambda _: new}, 2), 1)
    x = torch.randn(50)
    for beta, gamma in ((1.0, 0.5), (1.0, 2.0), (3.0, 2.0)):
        old.beta, new.gamma = beta, gamma
        want = (mk.swish(x, beta) + mk.aptx(x, gamma=gamma)) / 2
        torch.testing.assert_close(net(x), want)
        torch.testing.assert_close(torch.func.vmap(net)(x[None])[0], want)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), want)
    new.gamma = float("nan")
    with pytest.raises(ValueError, match=r"mishkit\.aptx: gamma must be finite"):
        net(x)


@pytest.mark.parametrize("swapped", ["old", "new", "both"])
def test_numbers_of_a_checkpoint_are_taken_over(swapped: str) -> None:
    """Those of a model that had them as buffers, before and within: strictly."""
    rules = {"old": ("aptx", "mish"), "new": ("silu", "aptx"), "both": ("aptx", "swish")}[swapped]
    net = nn.Sequential(mk.get(rules[0]), nn.Linear(1, 1))
    anneal = after(mk.Anneal(net, {rules[0]: rules[1]}, 2), 1)
    state, x = net.state_dict(), torch.randn(50)
    assert state.keys() == {"1.weight", "1.bias"}
    expected = [mk.get(name) for name in rules]
    for prefix, module in zip(("0.", "0.new."), expected, strict=True):
        for name in module.parameter_names if hasattr(module, "take_numbers") else ():
            state[prefix + name] = torch.tensor(0.75)
            setattr(module, name, 0.75)
    net.load_state_dict(state)
    torch.testing.assert_close(net[0](x), (expected[0](x) + expected[1](x)) / 2)
    after(anneal, 1)
    anneal.finish()
    torch.testing.assert_close(net[0](x), expected[1](x))


@pytest.mark.parametrize("schedule", ["cosine", lambda p: p**2], ids=["cosine", "function"])
def test_a_state_goes_on_where_it_was(schedule: Any) -> None:
    state = after(mk.Anneal(model(), RULES, 8, schedule), 3).state_dict()
    assert state == {"count": 3, "steps": 8, "schedule": "cosine" if schedule == "cosine" else None}
    resumed = mk.Anneal(model(), RULES, 5, "linear" if schedule == "cosine" else schedule)
    resumed.load_state_dict(state)
    uninterrupted = after(mk.Anneal(model(), RULES, 8, schedule), 3)
    for _ in range(6):
        assert (resumed.fraction, resumed.count) == (uninterrupted.fraction, uninterrupted.count)
        resumed.step(), uninterrupted.step()
    for wrong in (
        {},
        {**state, "count": 9},
        {**state, "steps": 0},
        {**state, "schedule": "odd"},
        3,
    ):
        with pytest.raises(ValueError, match=r"mishkit\.Anneal: "):
            resumed.load_state_dict(wrong)
    assert resumed.state_dict() == uninterrupted.state_dict()


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize(
    "copied",
    [lambda net, anneal: (pickled(net), *pickled((net, anneal))),
     lambda net, anneal: (pickled(net), *copy.deepcopy((net, anneal))),
     lambda net, anneal: (pickled(net), *reversed(copy.deepcopy((anneal, net))))],
    ids=["pickled", "copied with the anneal", "copied after the anneal"],
)  # fmt: skip
def test_pickles_and_copies_of_both_are_on_their_own(copied: Callable[..., Any]) -> None:
    net, x = trained_model().append(Attention()), torch.randn(6, 4)
    anneal = after(mk.Anneal(net, {**TRAINED, "gelu": "mish"}, 4), 1)
    alone, copied_net, its_anneal = copied(net, anneal)
    y = net.eval()(x)
    alone.eval(), copied_net.eval()
    after(anneal, 2)
    for same in (alone, copied_net):
        torch.testing.assert_close(same(x), y)
        assert same[1].weight is not net[1].weight
        same.double()
        assert same[1]._both[0].weight is same[1].weight  # still the old module's own
        same.float()
    its_anneal.step()
    torch.testing.assert_close(alone(x), y)
    assert (its_anneal.fraction, anneal.fraction) == (0.5, 0.75)
    its_anneal.finish()
    assert type(copied_net[1]) is mk.Swish and isinstance(alone[1], Blend)
    assert sorted(mk.unswap(alone)) == ["1", "3", "5.act"] and type(alone[1]) is nn.PReLU


def average(net: nn.Module) -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(net)


@pytest.mark.parametrize(
    "copied",
    [average, copy.deepcopy, lambda net: copy.deepcopy(copy.deepcopy(net)),
     lambda net: nn.ModuleDict({"student": nn.Identity(), "teacher": copy.deepcopy(net)})],
    ids=["average", "copy", "copy of a copy", "within another"],
)  # fmt: skip
def test_deep_copies_go_along_and_are_finished_too(copied: Callable[..., Any]) -> None:
    net, x = trained_model().append(Attention()).eval(), torch.randn(6, 4)
    anneal = after(mk.Anneal(net, {**TRAINED, "gelu": "mish"}, 4), 1)
    holder = copied(net)
    same = next(module for module in holder.modules() if isinstance(module, nn.Sequential))
    for step in (1, 2, 3, 4):
        torch.testing.assert_close(same(x), net(x), rtol=0, atol=0)
        assert (same[1].fraction, same[1].weight is net[1].weight) == (step / 4, False)
        anneal.step()
    with torch.no_grad():
        same[1].new.beta.fill_(1.5)
    y = same(x)
    assert anneal.finish() == ["1", "3", "5.act"] and isinstance(same[1], Blend)
    torch.testing.assert_close(same(x), y, rtol=0, atol=0)
    assert anneal.finish(holder) == []
    assert type(same[1]) is mk.Swish and same[1].beta.item() == 1.5
    assert "Blend" not in str(same) and not isinstance(same[5].act, BlendedFunction)
    torch.testing.assert_close(same(x), y, rtol=0, atol=0)
    assert len(mk.unswap(holder)) == 3 and type(same[1]) is nn.PReLU


def test_an_average_that_is_updated_has_the_activations_of_the_model() -> None:
    net, x = model(), torch.randn(8, 4)
    anneal = mk.Anneal(net, RULES, 4)
    swa = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=lambda to, of, _: None)
    with torch.no_grad():
        net[0].weight.zero_()
    for _ in range(5):
        want = copy.deepcopy(net)
        want.load_state_dict(swa.module.state_dict())
        torch.testing.assert_close(swa(x), want(x), rtol=0, atol=0)
        anneal.step()
    other = mk.Anneal(model(), RULES, 4)
    other.finish(swa)  # it goes along with another
    assert isinstance(swa.module[1], Blend) and swa.module[1].fraction == 1
    with pytest.raises(TypeError, match="a copy must be a module, not str"):
        anneal.finish("swa")
    assert anneal.finish(swa) == ["1", "2.act", "3"] and type(swa.module[1]) is mk.HMish
    assert str(mk.Anneal(nn.Sequential(nn.GELU()), RULES, 4)).startswith("Anneal(1 site, ")


def test_a_schedule_that_fails_leaves_the_anneal_where_it_is() -> None:
    def breaks(progress: float) -> float:
        if progress == 0.5:
            raise ZeroDivisionError
        return progress

    anneal = after(mk.Anneal(model(), RULES, 4, breaks), 1)
    state = anneal.state_dict()
    with pytest.raises(ZeroDivisionError):
        anneal.step()
    with pytest.raises(ZeroDivisionError):
        anneal.load_state_dict({"count": 1, "steps": 2, "schedule": None})
    assert (anneal.state_dict(), anneal.fraction) == (state, 0.25)


# ---- what calls the sites ------------------------------------------------------------------------


def test_hooks_and_mode_go_along() -> None:
    net, calls = model(), []
    handle = net[1].register_forward_hook(lambda module, x, y: calls.append(type(module)))
    x = torch.randn(2, 4)
    anneal = mk.Anneal(net.eval(), {"gelu": nn.Softsign, "silu": lambda old: nn.RReLU()}, 2)
    assert not net[3].training
    net(x)
    anneal.step()
    assert torch.equal(net(x), net(x))  # rrelu is random in training
    net.train()
    assert not torch.equal(net(x), net(x))
    del calls[2:]
    anneal.finish()
    net(x)
    assert net[3].training and not mk.unswap(net).count("0")
    net(x)
    handle.remove()
    net(x)
    assert calls == [Blend, Blend, nn.Softsign, nn.GELU]


def test_shared_modules_stay_shared() -> None:
    act = nn.GELU()
    net = nn.Sequential(act, nn.Linear(2, 2), act)
    anneal = mk.Anneal(net, {"gelu": "mish"}, 2)
    assert net[0] is net[2] and anneal.sites == ["0", "2"]
    anneal.finish()
    assert net[0] is net[2] and type(net[0]) is mk.Mish
    mk.unswap(net)
    assert net[0] is net[2] is act


@pytest.mark.parametrize("old", [nn.LeakyReLU(0.2, inplace=True), nn.Hardtanh(inplace=True)])
@pytest.mark.parametrize("new", ["mish", nn.Sigmoid, nn.CELU(inplace=True)], ids=str)
def test_what_is_not_ours_is_called(old: nn.Module, new: Any) -> None:
    net, x = nn.Sequential(copy.deepcopy(old)), torch.randn(40, requires_grad=True)
    anneal = mk.Anneal(net, {type(old): new}, 4)
    pure = copy.deepcopy(net[0]._both[1])
    before = x.detach().clone()
    for _ in range(5):
        t = anneal.fraction
        want = (1 - t) * old(x.clone()) + t * pure(x.clone())
        torch.testing.assert_close(net(x), want)
        (gradient,) = torch.autograd.grad(net(x).sum(), x)
        torch.testing.assert_close(gradient, torch.autograd.grad(want.sum(), x)[0])
        anneal.step()
    assert torch.equal(x.detach(), before)
    infinite = net(torch.tensor([torch.inf, -torch.inf, torch.nan]))
    assert infinite.isnan().tolist() == [False, False, True]


def test_an_encoder_layer_does_not_take_its_quick_way() -> None:
    layer = nn.TransformerEncoderLayer(4, 1, 8, activation="gelu", dropout=0, batch_first=True)
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        ends = [layer.eval()(x)]
        anneal = after(mk.Anneal(layer, {"gelu": "relu"}, 2), 2)
        ends.append(layer(x))
        anneal.load_state_dict({**anneal.state_dict(), "count": 1})
        assert not any(torch.allclose(layer(x), end, atol=1e-5) for end in ends)
        layer.activation = lambda x: (F.gelu(x) + F.relu(x)) / 2
        want = layer(x)
    layer2 = copy.deepcopy(layer)
    torch.testing.assert_close(layer2(x), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast_and_layouts(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GELU(), nn.Conv2d(3, 2, 3), nn.LeakyReLU())
    after(mk.Anneal(net, {"gelu": "h_mish", "leaky_relu": "mish"}, 2), 1)
    net.to(dtype).to(memory_format=torch.channels_last)
    x = torch.randn(1, 2, 9, 9).to(dtype).to(memory_format=torch.channels_last)
    y = net(x)
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    if dtype == torch.float32:
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x)
        y.float().sum().backward()
        assert y.dtype == torch.bfloat16 and net[0].weight.grad.isfinite().all()


# ---- compilers -----------------------------------------------------------------------------------


def compiled_network() -> tuple[nn.Sequential, mk.Anneal]:
    net = model().append(nn.LeakyReLU())
    return net, mk.Anneal(net, {**RULES, "leaky_relu": ("swish", {"trainable": True})}, 5)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_model_is_compiled_once_for_all_t() -> None:
    net, anneal = compiled_network()
    x, graphs = torch.randn(5, 4), []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    run = torch.compile(net, backend=counting, fullgraph=True)
    for _ in range(6):
        results = []
        for f in (run, net):
            net.zero_grad()
            y = f(x)
            y.square().sum().backward()
            results.append([y.detach(), *(p.grad.clone() for p in net.parameters())])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
        anneal.step()
    assert len(graphs) == 1


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_backward_passes_have_their_own_t() -> None:
    net, anneal = compiled_network()
    run = torch.compile(net, backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 4, requires_grad=True)
    after(anneal, 1)
    (want,) = torch.autograd.grad(net(x).sum(), x)
    y = run(x)
    anneal.step()
    (got,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_infinities_at_the_ends() -> None:
    net = nn.Sequential(nn.ReLU())
    anneal = mk.Anneal(net, {"relu": "mish"}, 2)
    run = torch.compile(net, backend="aot_eager", fullgraph=True)
    x = torch.tensor([torch.inf, -torch.inf, 3.0], requires_grad=True)
    for _ in range(3):
        y = run(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert y[:2].tolist() == [torch.inf, 0] and gradient[:2].tolist() == [1, 0]
        anneal.step()


@pytest.mark.parametrize("t", [0, 2, 5])
def test_export_has_the_t_of_the_moment(t: int) -> None:
    net, anneal = compiled_network()
    after(anneal, t)
    x = torch.randn(5, 4)
    want = net(x)
    exported = torch.export.export(net.eval(), (x,)).module()
    after(anneal, 1)
    torch.testing.assert_close(exported(x), want, rtol=1e-5, atol=1e-6)
