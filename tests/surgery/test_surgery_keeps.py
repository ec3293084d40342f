"""What surgery keeps of the modules that it replaces, and of a model where it fails halfway."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.ao.quantization as quantization
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import mishkit as mk
from mishkit.surgery.slots import put_all, slots

X = torch.randn(2, 3, 8, 8)
torchs_quantization = pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:.*quant:UserWarning",
)


def net(act: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), act, nn.Conv2d(8, 4, 3))


def lean(model: nn.Module) -> Any:
    return mk.lean(model, X, inplace=False, recompute=False)


def anneal(model: nn.Module) -> Any:
    rules = {"hardswish": "h_mish", "silu": "mish", "relu6": "mish", "prelu": "mish"}
    return mk.Anneal(model, rules, 2).finish()


def swap(model: nn.Module) -> Any:
    rules = {"hardswish": "h_mish", "silu": "mish", "relu6": nn.Tanh, "prelu": "mish"}
    return mk.swap(model, rules)


def swap_twice(model: nn.Module) -> Any:
    swap(model)
    return mk.swap(model, {"h_mish": nn.Tanh, "mish": lambda old: Doubled(), "tanh": "mish"})


def anneal_and_wait(model: nn.Module) -> Any:
    return mk.Anneal(model, {"hardswish": "h_mish", "silu": "mish", "relu6": nn.Tanh}, 2)


class Doubled(nn.Module):
    """An activation that nobody knows."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


# ---- what is not of the class --------------------------------------------------------------------


def prepared(act: nn.Module, qat: bool) -> nn.Sequential:
    model = net(act).train(qat)
    configuration = (
        quantization.get_default_qat_qconfig if qat else quantization.get_default_qconfig
    )
    model.qconfig = configuration("x86")
    (quantization.prepare_qat if qat else quantization.prepare)(model, inplace=True)
    model(X)
    return model


@torchs_quantization
@pytest.mark.parametrize("change", [swap, swap_twice, anneal, anneal_and_wait, lean])
@pytest.mark.parametrize("qat", [False, True], ids=["observed", "in training"])
@pytest.mark.parametrize("act", [nn.Hardswish, nn.SiLU, nn.ReLU6], ids=str)
def test_observers_of_quantisation_stay(act: Any, qat: bool, change: Callable[..., Any]) -> None:
    model = prepared(act(), qat)
    keys, old = list(model.state_dict()), model[1]
    holders = [name for name, m in model.named_modules() if hasattr(m, "qconfig")]
    observer = getattr(model[1], "activation_post_process", None)
    change(model)
    # Whether `lean` changes anything is for the audit to say.
    assert change is lean or model[1] is not old
    assert list(model.state_dict()) == keys and model(X).shape == (2, 4, 4, 4)
    assert [name for name, m in model.named_modules() if hasattr(m, "qconfig")] == holders
    assert getattr(model[1], "activation_post_process", None) is observer
    for m in (copy.deepcopy(model), model):  # torch's observers can't be pickled
        mk.unswap(m)
        assert list(m.state_dict()) == keys and m(X).shape == (2, 4, 4, 4)
        assert type(m[1]) is type(old)


@torchs_quantization
def test_what_is_put_there_after_the_swap_goes_back_too() -> None:
    model = net(nn.Hardswish())
    mk.swap(model, {"hardswish": "hardswish"})
    model.qconfig = quantization.get_default_qconfig("x86")
    model[1].register_module("observer", nn.Identity())
    model[1].register_forward_hook(lambda module, x, y: module.observer(y))
    model[1].note = "mine"
    mk.unswap(model)
    assert type(model[1]) is nn.Hardswish and model[1].note == "mine"
    assert model(X).shape == (2, 4, 4, 4)
    # And what is taken away while it is away stays so.
    mk.swap(model, {"hardswish": "h_mish"})
    del model[1].note, model[1].observer
    model[1]._forward_hooks.clear()
    mk.unswap(model)
    assert not hasattr(model[1], "note") and not hasattr(model[1], "observer")
    assert model(X).shape == (2, 4, 4, 4)


@pytest.mark.parametrize("change", [swap, swap_twice, anneal, lean])
def test_attributes_buffers_and_parameters_of_users_stay(change: Callable[..., Any]) -> None:
    model = net(nn.SiLU())
    model[1].tag, model[1].scale = "first", nn.Parameter(torch.ones(()))
    model[1].register_buffer("seen", torch.zeros(()))
    model[1].register_buffer("last", torch.zeros(()), persistent=False)
    model[1].register_forward_hook(lambda module, x, y: module.seen.add_(1) and y * module.scale)
    keys, scale = list(model.state_dict()), model[1].scale
    change(model)
    assert type(model[1]) is not nn.SiLU and model[1].tag == "first"
    assert list(model.state_dict()) == keys and model[1].scale is scale
    seen = int(model[1].seen)
    model.double()(X.double())
    assert model[1].seen == seen + 1 and scale.dtype == torch.float64
    mk.unswap(model)
    assert list(model.state_dict()) == keys and model[1].tag == "first"
    assert model[1].seen == seen + 1 and model[1].seen.dtype == torch.float64
    assert not hasattr(nn.SiLU(), "tag") and model[1].scale is scale


def test_pruned_parameters_of_an_activation_go_over() -> None:
    model = net(nn.PReLU(8))
    prune.random_unstructured(model[1], "weight", 0.5)
    keys = list(model.state_dict())
    mk.swap(model, {"prelu": "mish"})
    assert list(model.state_dict()) == keys and model(X).shape == (2, 4, 4, 4)
    mk.unswap(model)
    assert list(model.state_dict()) == keys and model(X).shape == (2, 4, 4, 4)


def test_nothing_of_a_class_s_own_goes_over() -> None:
    model = nn.Sequential(nn.Softplus(2), nn.PReLU(), mk.Swish(trainable=True), nn.SiLU(True))
    mk.swap(model, {"softplus": "mish", "prelu": "mish", "swish": "mish", "silu": nn.Tanh})
    for act in model[:3]:
        assert vars(act).keys() - vars(mk.Mish()).keys() == {"_apply", "_mishkit_replaced"}
    assert list(model.state_dict()) == [] and not hasattr(model[3], "inplace")


def test_modes_within_what_is_carried_over_stay() -> None:
    model = net(nn.SiLU())
    model[1].observer = nn.Dropout().eval()
    held = mk.Anneal(model, {"silu": "mish"}, 2)
    assert model[1].training and not model[1].observer.training
    held.finish()
    mk.unswap(model)
    assert not model[1].observer.training


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def parametrized(model: nn.Sequential) -> str:
    parametrize.register_parametrization(model[1], "weight", Scaled())
    return "it is parametrized"


def patched(model: nn.Sequential) -> str:
    forward = model[1].forward
    model[1].forward = lambda x: forward(x) + 1
    return "its forward was replaced"


@pytest.mark.parametrize("alter", [parametrized, patched])
@pytest.mark.parametrize("key", ["prelu", nn.PReLU, "1", "*"], ids=str)
def test_a_module_that_is_more_than_its_class_is_left_and_the_result_says_so(
    key: Any, alter: Callable[..., str]
) -> None:
    model = net(nn.PReLU(8)).append(nn.SiLU())
    reason = alter(model)
    keys, y, kind = list(model.state_dict()), model(X), type(model[1])
    done = mk.swap(model, {"silu": "silu", key: "mish"})
    assert done.left == {"1": reason} and [site.name for site in done] == ["3"]
    assert f"1 is left: {reason}" in str(done) and "1 site replaced" in str(done)
    assert type(model[1]) is kind and list(model.state_dict()) == keys
    torch.testing.assert_close(model(X), y)
    with pytest.raises(ValueError, match=f"1 is left: {reason}"):
        mk.Anneal(model, {nn.PReLU: "mish"}, 2)
    assert mk.Anneal(model, {nn.PReLU: "mish", "*3": "mish"}, 2).left == {"1": reason}


@pytest.mark.parametrize("own", [mk.Swish(trainable=True), mk.Mish(), nn.Softplus()], ids=str)
def test_forwards_that_others_replaced_since_are_not_lost(own: nn.Module) -> None:
    model = net(nn.SiLU()).append(nn.GELU())
    mk.swap(model, {"silu": own, "gelu": "mish"})
    before = str(model)
    forward = model[1].forward
    model[1].forward = lambda x: forward(x) + 1
    y = model(X)
    with pytest.raises(ValueError, match=r'^mishkit\.unswap: "1" is left: its forward was rep'):
        mk.unswap(model)
    assert str(model) == before and torch.equal(model(X), y)
    del model[1].forward
    assert sorted(mk.unswap(model)) == ["1", "3"]


def test_one_module_does_not_stand_for_two() -> None:
    model = nn.Sequential(nn.SiLU(), nn.GELU(), nn.SiLU())
    shared = mk.Mish()
    with pytest.raises(ValueError, match=r'swap: one Mish is made for "0" and "1", which hold two'):
        mk.swap(model, {"*": lambda old: shared})
    model[2] = model[0]
    assert len(mk.swap(model, {"silu": lambda old: shared})) == 2 and model[0] is model[2] is shared
    assert mk.unswap(model) == ["0", "2"] and model[0] is model[2]


# ---- all or nothing ------------------------------------------------------------------------------


class Unwritable(nn.Module):
    """Its activation can't be replaced once it is closed."""

    def __init__(self, act: Any = None) -> None:
        super().__init__()
        self.act = act or nn.SiLU()
        self.closed = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "act" and getattr(self, "closed", False):
            raise AttributeError("act is read only")
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


class Untrainable(nn.Module):
    """What is put in, and can't be put into evaluation mode."""

    def train(self, mode: bool = True) -> Untrainable:
        raise RuntimeError("no modes")


def with_a_function() -> nn.Module:
    encoder = nn.TransformerEncoderLayer(4, 1, 8, activation="gelu", batch_first=True)
    return nn.Sequential(nn.SiLU(), encoder, Unwritable(F.silu), nn.PReLU())


def with_a_module() -> nn.Module:
    shared = nn.SiLU()
    shared.note = "mine"
    shared.register_forward_hook(lambda *_: None)
    inner = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.GELU(), shared)})
    return nn.Sequential(inner["a"], inner["b"], Unwritable(), nn.SiLU())


def everything(model: nn.Module) -> list[Any]:
    """Which objects hold what, and their modes and hooks."""
    seen = []
    for name, module in model.named_modules(remove_duplicate=False):
        held = {k: id(v) for k, v in vars(module).items()}
        inner = [
            {k: id(v) for k, v in value.items()}
            for value in vars(module).values()
            if isinstance(value, dict)
        ]
        seen.append((name, id(module), module.training, list(held.items()), inner))
    return seen


RULES = {"silu": "mish", "gelu": "mish", "prelu": "mish"}


@pytest.mark.parametrize("build", [with_a_function, with_a_module])
@pytest.mark.parametrize(
    "change",
    [lambda m: mk.swap(m, RULES), lambda m: mk.Anneal(m, RULES, 3),
     lambda m: put_all((s, mk.ReLU()) for s in slots(m) if type(s.value) is nn.SiLU)],
    ids=["swap", "anneal", "put_all"],
)  # fmt: skip
def test_an_owner_that_refuses_leaves_everything_as_it_was(
    build: Callable[[], nn.Module], change: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    if build is with_a_function and "put_all" in request.node.name:
        pytest.skip("it puts modules alone")
    model = build()
    before = everything(model)
    with pytest.raises(AttributeError, match="read only"):
        change(model)
    assert everything(model) == before and mk.unswap(model) == []


@pytest.mark.parametrize("build", [with_a_function, with_a_module])
@pytest.mark.parametrize("change", [mk.unswap, lambda m: m.held.finish(m)], ids=["un", "finish"])
def test_taking_back_and_finishing_are_all_or_nothing(
    build: Callable[[], nn.Module], change: Callable[..., Any]
) -> None:
    model = build()
    model[2].closed = False
    vars(model)["held"] = mk.Anneal(model, RULES, 3)
    model[2].closed = True
    before, state = everything(model), model.held.state_dict()
    with pytest.raises(AttributeError, match="read only"):
        change(model)
    assert everything(model) == before and model.held.state_dict() == state
    model[2].closed = False
    mk.unswap(model)
    assert not any("mishkit" in type(m).__module__ for m in model.modules())


def test_lean_is_all_or_nothing() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 4), Unwritable(), nn.Linear(4, 4)
    )
    before = everything(model)
    with pytest.raises(AttributeError, match="read only"):
        mk.lean(model, torch.randn(3, 4), inplace=False, recompute=False)
    assert everything(model) == before


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (lambda old: 1 / 0, ZeroDivisionError),
        (lambda old: "é".encode("ascii"), ValueError),
        (lambda old: Untrainable(), RuntimeError),
        (lambda old: None, TypeError),
    ],
)
def test_what_makes_the_new_may_fail(value: Any, error: type[Exception]) -> None:
    model = nn.Sequential(nn.SiLU(), nn.GELU()).eval()
    before = everything(model)
    with pytest.raises(error):
        mk.swap(model, {"silu": "mish", "gelu": value})
    assert everything(model) == before


def test_a_scripted_part_is_left_alone() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.SiLU()))
    model = nn.Sequential(scripted, nn.SiLU())
    assert [site.name for site in mk.swap(model, {"silu": "mish"})] == ["1"]
    assert mk.unswap(model) == ["1"] and model[0] is scripted


# ---- put back where the model is now -------------------------------------------------------------


@pytest.mark.parametrize("change", [swap, anneal, swap_twice], ids=["swap", "anneal", "twice"])
@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy], ids=["itself", "copy"])
def test_what_comes_back_has_the_model_s_dtype_and_device(
    change: Callable[..., Any], copied: Callable[..., Any]
) -> None:
    weight = torch.rand(8)
    model = net(nn.PReLU(8)).append(nn.Sequential(nn.PReLU()))
    with torch.no_grad():
        model[1].weight.copy_(weight)
    change(model)
    model = copied(model).bfloat16()
    mk.unswap(model)
    assert type(model[1]) is nn.PReLU and model[1].weight.dtype == torch.bfloat16
    assert torch.equal(model[1].weight, weight.bfloat16())
    assert model(X.bfloat16()).dtype == torch.bfloat16
    change(model)
    model.to("meta")
    mk.unswap(model)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_container_comes_back_with_what_was_replaced_in_it() -> None:
    model = nn.Sequential(nn.Sequential(nn.PReLU(), nn.BatchNorm1d(4).eval()), nn.SiLU())
    mk.swap(model, {nn.Sequential: nn.Identity})
    model.double()
    assert mk.unswap(model) == ["0"]
    assert model[0][0].weight.dtype == torch.float64
    assert not model[0][1].training and model[0].training


# ---- old pickles ---------------------------------------------------------------------------------


def old(act: nn.Module, *missing: str) -> nn.Sequential:
    for name in missing:
        delattr(act, name)
    return pickle.loads(pickle.dumps(nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4))))


OLD = [
    (nn.GELU, ("approximate",), "gelu"),
    (nn.Hardswish, ("inplace",), "hardswish"),
    (nn.SiLU, ("inplace",), "silu"),
    (nn.Softplus, ("beta", "threshold"), "softplus"),
    (nn.ReLU6, ("inplace", "min_val", "max_val"), "relu6"),
    (mk.GELU, ("approximate", "save"), "gelu"),
    (mk.Mish, ("inplace",), "mish"),
    (mk.Swish, ("num_parameters", "beta"), "swish"),
]


@pytest.mark.parametrize(("kind", "missing", "name"), OLD, ids=str)
def test_modules_of_old_pickles_are_what_torch_s_defaults_make_them(
    kind: type[nn.Module], missing: tuple[str, ...], name: str
) -> None:
    x = torch.randn(3, 4)
    want = nn.Sequential(nn.Linear(4, 4), kind(), nn.Linear(4, 4))
    to = name if name in mk.names() else "mish"
    for rules in ({name: to}, {"1": to}, {kind: to}):
        model = old(kind(), *missing)
        same = copy.deepcopy(want)
        same.load_state_dict(model.state_dict())
        mk.swap(same, rules)
        assert len(mk.swap(model, rules)) == 1
        torch.testing.assert_close(model(x), same(x), rtol=0, atol=0)
        mk.audit(model, x)
        assert mk.unswap(model) == ["1"] and type(model[1]) is kind
    model = old(kind(), *missing)
    mk.swap(model, {"sigmoid": "mish"})
    if to == name:
        anneal = mk.Anneal(model, {name: "relu"}, 2)
        assert "t=0" in str(model)
        anneal.finish()
        assert torch.isfinite(model(x)).all()
