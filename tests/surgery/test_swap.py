"""Swapping the activations of a model by rules, and back."""

from __future__ import annotations

import copy
import functools
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common import ROOT
from torch import nn

import mishkit as mk
from mishkit.surgery.replacements import Replacement


class MyAct(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs()


class MySiLU(nn.SiLU):
    pass


class Block(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.linear, self.act, self.drop = nn.Linear(4, 4), act, nn.Dropout(0.5)
        self.gate = F.silu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.act(self.linear(x))) * self.gate(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.SiLU(inplace=True))
        self.blocks = nn.Sequential(Block(nn.GELU()), Block(mk.SiLU(save="output")), Block(MyAct()))
        self.encoder = nn.TransformerEncoderLayer(4, 1, 8, activation="gelu", batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.blocks(self.stem(x * 1)))  # the stem works in place


def at(model: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


LINEARS = ["stem.0", *(f"blocks.{i}.linear" for i in range(3))]
LINEARS += ["encoder.linear1", "encoder.linear2"]
GATES = {f"blocks.{i}.gate": "mish" for i in range(3)}


@pytest.mark.parametrize(
    ("rules", "want"),
    [
        # A function's name: whatever the class, with inplace and save; functions get functions.
        ({"silu": "mish"},
         {"stem.1": "Mish(inplace=True, save='copy')", "blocks.1.act": "Mish(save='output')",
          **GATES}),
        ({"SiLU": mk.Mish},
         {"stem.1": "Mish(inplace=True, save='copy')", "blocks.1.act": "Mish(save='output')",
          **GATES}),
        ({"gelu": "hard_mish:k=4"}, {"blocks.0.act": "HardMish(k=4.0)",
                                     "encoder.activation": "hard_mish(k=4.0)"}),
        # What is said wins; what excludes working from the output is not given it.
        ({"silu": ("mish", {"inplace": False, "save": "output"})},
         {"stem.1": "Mish(save='output')", "blocks.1.act": "Mish(save='output')",
          **dict.fromkeys(GATES, "mish(save='output')")}),
        ({"stem.*": ("swish", {"beta": 2, "trainable": True})},
         {"stem.1": "Swish(trainable=True, inplace=True, save='copy')"}),
        ({"stem.*": "swish:beta=-1"},
         {"stem.1": "Swish(beta=-1.0, inplace=True, save='copy')"}),
        # Classes, exactly.
        ({nn.GELU: nn.ReLU6}, {"blocks.0.act": "ReLU6()"}),
        ({nn.SiLU: nn.Softplus(3, 9), mk.SiLU: "h_mish"},
         {"stem.1": "Softplus(beta=3, threshold=9)", "blocks.1.act": "HMish(save='output')"}),
        ({MyAct: "mish"}, {"blocks.2.act": "Mish()"}),
        ({nn.Linear: nn.Identity}, dict.fromkeys(LINEARS, "Identity()")),
        # Patterns: known activations, and others where their own name is spelt out.
        ({"blocks.*": "relu"}, {"blocks.0.act": "ReLU()", "blocks.1.act": "ReLU(save='output')",
                                **dict.fromkeys(GATES, "relu")}),
        ({"*.act": "relu"}, {"blocks.0.act": "ReLU()", "blocks.1.act": "ReLU(save='output')",
                             "blocks.2.act": "ReLU()"}),
        ({"encoder.activation": nn.Hardtanh(-2, 2)},
         {"encoder.activation": "Hardtanh(min_val=-2, max_val=2)"}),
        ({"blocks.[01].act": mk.Mish()}, {"blocks.0.act": "Mish()", "blocks.1.act": "Mish()"}),
        # The first rule counts.
        ({"blocks.0.*": "relu", "gelu": "mish", "silu": "h_mish"},
         {"stem.1": "HMish(inplace=True, save='copy')", "blocks.0.act": "ReLU()",
          "blocks.0.gate": "relu",
          "blocks.1.act": "HMish(save='output')", "blocks.1.gate": "h_mish",
          "blocks.2.gate": "h_mish", "encoder.activation": "mish"}),
        ({"blocks.*.act": lambda old: nn.Sequential(nn.Tanh(), nn.SiLU()) if type(old) is nn.GELU
          else mk.Mish()},
         {"blocks.0.act": "Sequential(...)", "blocks.1.act": "Mish()", "blocks.2.act": "Mish()"}),
        ({"relu": "mish"}, {}),
    ],
)  # fmt: skip
def test_rules_say_what_goes_where_and_unswap_undoes_it(
    rules: dict[Any, Any], want: dict[str, str]
) -> None:
    model = Net().eval()
    before, state = str(model), model.state_dict()
    x = torch.randn(2, 3, 4)
    y = model(x)
    done = mk.swap(model, rules)
    assert {site.name: site.new for site in done} == want
    for name in want:
        assert isinstance(at(model, name), nn.Module) != (
            name in GATES or name == "encoder.activation"
        )
    if want:
        assert not torch.equal(model(x), y)
    assert not model.training
    assert all(not module.training for module in model.modules())

    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(copied(x), model(x), rtol=0, atol=0)
        assert sorted(mk.unswap(copied)) == sorted(want)
        torch.testing.assert_close(copied(x), y, rtol=0, atol=0)
    assert sorted(mk.unswap(model)) == sorted(want)
    assert str(model) == before and mk.unswap(model) == []
    model.load_state_dict(state)
    torch.testing.assert_close(model(x), y, rtol=0, atol=0)


IN_PLACE: dict[str, Callable[[], nn.Module]] = {
    "silu": lambda: nn.SiLU(inplace=True),
    "mish": lambda: nn.Mish(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "hardsigmoid": lambda: nn.Hardsigmoid(inplace=True),
    "ours": lambda: mk.SiLU(inplace=True, save="copy"),
}
AFTER: dict[str, Callable[[], nn.Module]] = {
    "another": lambda: nn.Hardswish(inplace=True),
    "dropout": lambda: nn.Dropout(0.5, inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
}


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("old", IN_PLACE)
def test_what_follows_an_activation_in_place_may_write_over_its_output(
    old: str, after: str
) -> None:
    """torch's activations keep a copy of their input, and so do those in their places."""
    for new, plain in (
        ("mish", mk.Mish()),
        ("hard_mish:k=5", mk.HardMish(5.0)),
        ("swish:beta=-1", mk.Swish(-1.0)),
        (("aptx", {"trainable": True}), mk.APTx(trainable=True)),
    ):
        model = nn.Sequential(nn.Linear(4, 4), IN_PLACE[old](), AFTER[after](), nn.Linear(4, 4))
        want = copy.deepcopy(model)
        want[1] = plain
        mk.swap(model, {"1": new})
        assert_same_training(model, want, torch.randn(3, 4))


def test_a_result_that_nobody_takes_is_written_over_the_input() -> None:
    """Whatever the new function needs for its backward pass."""

    class Net(nn.Module):
        def __init__(self, act: nn.Module) -> None:
            super().__init__()
            self.linear, self.act = nn.Linear(4, 4), act

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.linear(x)
            self.act(x)
            return x

    for old in (nn.ReLU(inplace=True), nn.SiLU(inplace=True), mk.Mish(inplace=True)):
        for new in ("mish", "swish:beta=-1", ("swish", {"trainable": True})):
            model = Net(old)
            mk.swap(model, {"act": new})
            want = nn.Sequential(copy.deepcopy(model.linear), copy.deepcopy(model.act))
            assert_same_training(model, want, torch.randn(3, 4))


def assert_same_training(model: nn.Module, want: nn.Module, x: torch.Tensor) -> None:
    results = []
    for m in (model, want):
        torch.manual_seed(0)
        y = m(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), list(m.parameters()))))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_what_was_replaced_prints_as_a_table() -> None:
    done = mk.swap(Net(), {"gelu": "mish", nn.Mish: "relu", "elu": "relu"})
    assert done[0] == Replacement("blocks.0.act", "GELU(approximate='none')", "Mish()")
    assert done.unused == (nn.Mish, "elu")
    assert str(done) == (
        "site                old                       new\n"
        "blocks.0.act        GELU(approximate='none')  Mish()\n"
        "encoder.activation  gelu                      mish\n"
        "2 sites replaced; none found for Mish, 'elu'"
    )
    assert str(mk.swap(Net(), {})) == "0 sites replaced"


class Refused(Exception):
    pass


def _fails(_old: Any) -> Any:
    raise Refused


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"sillu": "mish"}, ValueError, "did you mean 'silu'"),
        ({"blocks.0.akt": "mish"}, ValueError, "did you mean 'blocks.0.act'"),
        ({"layers.*": "mish"}, ValueError, "nor does any site"),
        ({"stem": "mish"}, ValueError, '"stem" is for no activation; it fits "stem", a Sequential'),
        ({"blocks.*.dr*": "mish"}, ValueError, "a Dropout"),
        ({"*.linear": "mish"}, ValueError, "a Linear"),
        ({"gelu": "mich"}, ValueError, 'did you mean "mish"'),
        ({"gelu": "tanh"}, ValueError, 'there is no activation "tanh"'),
        ({"gelu": "hard_mish:k"}, ValueError, 'as in "hard_mish:k=5"'),
        ({"gelu": "hard_mish:k=-1"}, ValueError, "k must be positive"),
        ({"gelu": "mish:k=5"}, TypeError, "'k'"),
        ({"gelu": ("mish",)}, ValueError, "a pair"),
        ({"gelu": ("swish", {"trainable": True})}, ValueError, 'at "encoder.activation"'),
        ({"gelu": nn.PReLU()}, ValueError, "has parameters, which a function can't hold"),
        ({"gelu": nn.PReLU}, ValueError, "has parameters, which a function can't hold"),
        ({"gelu": 5}, TypeError, "not 5"),
        ({5: "mish"}, TypeError, "not 5"),
        ({torch.Tensor: "mish"}, TypeError, "a class of modules"),
        ({"gelu": lambda old: None}, TypeError, "must make a module, not NoneType"),
        ({"gelu": _fails}, Refused, ""),
        (["gelu"], TypeError, "rules must be a mapping, not list"),
    ],
)
def test_nothing_is_replaced_if_any_rule_is_wrong(
    rules: Any, error: type[Exception], message: str
) -> None:
    model = Net()
    before = str(model)
    with pytest.raises(error) as caught:
        mk.swap(model, {"silu": "mish", **rules} if isinstance(rules, dict) else rules)
    assert message in str(caught.value)
    assert error is Refused or str(caught.value).startswith("mishkit.swap: ")
    assert str(model) == before and mk.unswap(model) == []


def test_the_model_itself_must_be_a_module_that_holds_activations() -> None:
    with pytest.raises(ValueError, match="the model itself is an activation"):
        mk.swap(nn.SiLU(), {"silu": "mish"})
    with pytest.raises(ValueError, match="output= is for ONNX"):
        mk.swap(Net(), {"silu": "mish"}, output="net.onnx")
    for wrong in (None, F.silu, {"stem": nn.SiLU()}):
        with pytest.raises(TypeError, match=r"^mishkit\.swap: the model must be"):
            mk.swap(wrong, {"silu": "mish"})
    with pytest.raises(TypeError, match=r"^mishkit\.unswap: the model must be"):
        mk.unswap(F.silu)


def test_a_shared_module_stays_shared_and_copies_are_apart() -> None:
    shared = nn.SiLU()
    model = nn.Sequential(shared, nn.Sequential(shared), nn.SiLU())
    mine = mk.Softplus(2)
    mk.swap(model, {"silu": mine})
    assert model[0] is model[1][0] and model[0] is not model[2] and mine not in [*model.modules()]
    mk.unswap(model)
    assert model[0] is model[1][0] is shared
    # Where a rule is for one of its places alone, the other keeps it.
    mk.swap(model, {"1.*": "mish"})
    assert model[0] is shared and type(model[1][0]) is mk.Mish
    mk.unswap(model)
    assert model[1][0] is shared


def test_a_subclass_is_not_its_class() -> None:
    model = nn.Sequential(MySiLU(), nn.SiLU())
    assert [site.name for site in mk.swap(model, {"silu": "mish"})] == ["1"]
    assert [site.name for site in mk.swap(model, {nn.SiLU: "mish", MySiLU: "relu"})] == ["0"]


def test_a_container_replaced_by_its_class_goes_with_what_is_in_it() -> None:
    model = nn.Sequential(Block(nn.SiLU()), nn.SiLU())
    done = mk.swap(model, {Block: nn.Identity, "silu": "mish"})
    assert [site.name for site in done] == ["0", "1"]
    assert mk.unswap(model) == ["0", "1"] and type(model[0].act) is nn.SiLU


def test_swapping_twice_is_undone_at_once_and_hooks_stay() -> None:
    model = Net()
    seen = []
    model.stem[1].register_forward_hook(lambda module, *_: seen.append(type(module)))
    for rules in ({"silu": "mish"}, {"mish": "h_mish"}, {"h_mish": "silu"}):
        mk.swap(model, rules)
        model(torch.randn(1, 2, 4))
    assert "stem.1" in mk.unswap(model)
    model(torch.randn(1, 2, 4))
    assert seen == [mk.Mish, mk.HMish, mk.SiLU, nn.SiLU]


@pytest.mark.parametrize(
    "activation",
    [nn.GELU(), nn.ReLU(), F.gelu, F.relu],
    ids=["nn.GELU", "nn.ReLU", "F.gelu", "F.relu"],
)
def test_a_transformer_s_fused_inference_does_not_outlive_its_activation(
    activation: nn.Module | Callable[..., Any],
) -> None:
    layer = nn.TransformerEncoderLayer(4, 1, 8, activation=activation, batch_first=True)
    model = nn.Sequential(layer).eval()
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        before = model(x)
        mk.swap(model, {"gelu": "softplus", "relu": "softplus"})
        fused = model(x)
    torch.testing.assert_close(fused, model(x))
    assert (fused - before).abs().max() > 1e-3
    mk.unswap(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x), before)


def test_a_trained_model_keeps_its_weights_across(fresh_compiler: None) -> None:
    model = Net().eval()
    trained = {name: torch.randn_like(p) for name, p in model.state_dict().items()}
    mk.swap(model, {"silu": "mish", "gelu": "mish"})
    model.load_state_dict(trained)
    reference = Net().eval()
    reference.load_state_dict(trained)
    mk.swap(reference, {"silu": nn.Mish, "gelu": nn.Mish})
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(model(x), reference(x))
    sum(model(x).flatten()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_partials_are_described_by_what_they_are_given() -> None:
    model = Net()
    model.blocks[0].gate = functools.partial(F.gelu, approximate="tanh")
    done = mk.swap(model, {"gelu_tanh": ("hard_mish", {"k": 3})})
    assert [(site.name, site.old, site.new) for site in done] == [
        ("blocks.0.gate", "gelu(approximate='tanh')", "hard_mish(k=3.0)")
    ]


@pytest.mark.usefixtures("torchvision")
def test_the_activations_of_timm_are_found() -> None:
    model = pytest.importorskip("timm").create_model("test_vit")
    done = mk.swap(model, {"gelu": "h_mish"})
    assert len(done) == len(model.blocks) and {site.new for site in done} == {"HMish()"}


def test_the_same_function_keeps_its_parameters() -> None:
    model = nn.Sequential(mk.Swish(1.702), mk.HardMish(3), nn.Softplus(2, 9), mk.APTx(beta=0.5))
    rules = {
        "swish": ("swish", {"trainable": True}),
        "hard_mish": "hard_mish",
        "softplus": "softplus:threshold=7",
        "aptx": ("aptx", {"trainable": True}),
    }
    mk.swap(model, rules)
    assert model[0].trainable and float(model[0].beta.detach()) == pytest.approx(1.702)
    assert model[1].k == 3 and (model[2].beta, model[2].threshold) == (2, 7)
    assert isinstance(model[3].beta, nn.Parameter) and float(model[3].beta.detach()) == 0.5


PAGE = ROOT / "docs" / "swap.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the docs are not here")
def test_the_page_on_swapping_runs_and_prints_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    text = PAGE.read_text()
    blocks = re.finditer(r"^```(python)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    shown = 0
    for block in blocks:
        if block[1]:
            capsys.readouterr()
            line = text[: block.start(2)].count("\n")
            exec(compile("\n" * line + block[2], str(PAGE), "exec"), namespace)
        else:
            assert capsys.readouterr().out.splitlines()[-block[2].count("\n") :] == (
                block[2].splitlines()
            )
            shown += 1
    assert shown == 4
    assert {"mish.onnx", "short.onnx"} <= {path.name for path in tmp_path.iterdir()}
