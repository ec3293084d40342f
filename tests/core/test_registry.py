"""Activations by name: `names`, `get`, and `register` with the real timm and transformers."""

from __future__ import annotations

import copy
import os
import pickle
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import interpreters
import pytest
import torch
from common import DEFAULTS, Case, assert_same_bits, every_case, every_function
from torch import Tensor, nn

import mishkit
from mishkit.functions import ACTIVATIONS

X = torch.linspace(-9, 9, 200)


def module_of(case: Case) -> type[nn.Module]:
    return getattr(mishkit, case.a.module_name)


def arguments_of(case: Case) -> dict[str, float]:
    return {p.name: v for p, v in zip(case.a.parameters, case.parameters, strict=True)}


# ---- names and get ----


def test_names_are_those_of_the_functions() -> None:
    assert mishkit.names() == list(ACTIVATIONS)
    assert all(callable(getattr(mishkit, name)) for name in mishkit.names())


@every_case
def test_a_name_builds_its_module(case: Case) -> None:
    for name in (case.a.name, case.a.module_name):
        module = mishkit.get(name, **arguments_of(case), inplace=True, save="output")
        assert type(module) is module_of(case)
        assert repr(module) == repr(
            module_of(case)(**arguments_of(case), inplace=True, save="output")
        )
        assert mishkit.get(name) is not mishkit.get(name)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("h-mish", "h_mish"), ("HMisch", "h_mish"), ("MISH", "mish"), ("Mihs", "mish")],
)
def test_an_unknown_name_is_told_the_nearest(wrong: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f'"{wrong}"; did you mean "{meant}"') as error:
        mishkit.get(wrong)
    assert all(name in str(error.value) for name in mishkit.names())
    assert "\n" not in str(error.value)


def test_nothing_is_near_a_name_from_elsewhere() -> None:
    with pytest.raises(ValueError, match=r'"quadratic"\. There are relu'):
        mishkit.get("quadratic")


@pytest.mark.parametrize("name", [None, 3, nn.Mish, ["mish"]])
def test_a_name_is_a_string(name: Any) -> None:
    with pytest.raises(TypeError, match=r"mishkit\.get: the name must be a string"):
        mishkit.get(name)


def test_the_module_checks_its_arguments() -> None:
    with pytest.raises(TypeError, match=r"Mish.*unexpected keyword argument 'slope'"):
        mishkit.get("mish", slope=1)
    with pytest.raises(ValueError, match="Mish: save must be"):
        mishkit.get("mish", save="nothing")


# ---- register ----


@pytest.mark.parametrize("absent", [["timm"], ["transformers"], ["timm", "transformers"]], ids=str)
def test_what_is_not_installed_is_left_out(
    absent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in absent:
        monkeypatch.setitem(sys.modules, library, None)
    before = set(sys.modules)
    assert mishkit.register(libraries=absent) == {}
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"libraries": ["keras"]}, ValueError, 'unknown library "keras"; known are timm, transf'),
        ({"libraries": "keras"}, ValueError, 'unknown library "keras"'),
        ({"prefix": "My_"}, ValueError, 'names must be in lower case, not "My_'),
        ({"named": {"Sharp": "mish"}}, ValueError, 'names must be in lower case, not "Sharp"'),
        ({"named": {"new": "hmish"}}, ValueError, 'register: there is no activation "hmish"'),
        ({"named": {"new": ("mish",)}}, ValueError, '"new" must stand for an activation or a'),
        ({"named": {"new": ("mish", 3)}}, ValueError, '"new" must stand for an activation or a'),
        ({"named": {"new": (3, {})}}, TypeError, "register: the name must be a string, not int"),
        ({"named": {"new": ("mish", {"k": 3})}}, TypeError, "unexpected keyword argument 'k'"),
    ],
    ids=str,
)
def test_misuse(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        mishkit.register(**{"libraries": (), **options})
    assert "\n" not in str(raised.value)


def raw(table: dict[str, Any]) -> dict[str, Any]:
    """What is in a table, without the modules that reading one of transformers' builds."""
    return {name: dict.get(table, name) for name in table}


def restoring(library: ModuleType, tables: list[dict[str, Any]]) -> Iterator[ModuleType]:
    before = [raw(table) for table in tables]
    yield library
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture
def timm(torchvision: None) -> Iterator[ModuleType]:
    library = pytest.importorskip("timm")
    create_act = import_module("timm.layers.create_act")
    yield from restoring(library, [*create_act._ACT_LAYERS, *create_act._ACT_FNS])


@pytest.fixture
def transformers(torchvision: None) -> Iterator[ModuleType]:
    library = pytest.importorskip("transformers")
    activations = import_module("transformers.activations")
    yield from restoring(library, [activations.ACT2CLS, activations.ACT2FN])


def activations_in(model: nn.Module) -> list[nn.Module]:
    """The activations of a model, in whatever library's class."""
    ours = tuple(module_of(case) for case in DEFAULTS)
    return [m for m in model.modules() if isinstance(m, (*ours, nn.ReLU, nn.GELU, nn.Mish))]


def assert_trains_alike(model: nn.Module, twin: nn.Module, *inputs: Tensor) -> None:
    """Both models give the same output and the same gradients."""
    twin.load_state_dict(model.state_dict())
    gradients = []
    for m in (model, twin):
        y = m(*inputs)
        y = y if isinstance(y, Tensor) else y.last_hidden_state
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        gradients.append([y.detach(), *(p.grad for p in m.parameters() if p.grad is not None)])
    assert len(gradients[0]) > 5
    largest = max(float(want.abs().max()) for want in gradients[1])
    for got, want in zip(*gradients, strict=True):
        # From the output a gradient is a little less exact, and batch norm enlarges that; some
        # gradients are zero but for rounding.
        atol = 2e-3 * float(want.abs().max()) + 1e-6 * largest
        torch.testing.assert_close(got, want, rtol=0, atol=atol)


def test_both_at_once(timm: ModuleType, transformers: ModuleType) -> None:
    names = ["mishkit_" + name for name in mishkit.names()]
    for _ in range(2):
        assert mishkit.register() == {"timm": names, "transformers": names}
    assert mishkit.register(libraries="timm") == {"timm": names}
    assert mishkit.register(prefix="my_", named={"sharp": "Mish"})["timm"][-1] == "sharp"


# ---- timm ----


@every_function
@pytest.mark.parametrize("exportable", [False, True])
def test_timm_finds_every_name(case: Case, exportable: bool, timm: ModuleType) -> None:
    mishkit.register(libraries=["timm"])
    name = "mishkit_" + case.a.name
    with timm.layers.set_exportable(exportable):
        make, function = timm.layers.get_act_layer(name), timm.layers.get_act_fn(name)
        modules = [
            timm.layers.create_act_layer(name, inplace=True),
            pickle.loads(pickle.dumps(make))(True),
            timm.layers.create_act_layer(name),
        ]
    assert [type(module) for module in modules] == [module_of(case)] * 3
    assert [module.inplace for module in modules] == [True, True, False]
    x = X.clone()
    assert_same_bits(function(x), case.call(X))
    assert function(x, inplace=True) is x


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("resnet18", {"layers": (1, 1, 1, 1)}, nn.Mish),
        ("resnetv2_50", {"layers": (1, 1, 1, 1)}, nn.Mish),  # takes norms and activations together
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, nn.GELU),
    ],
)
def test_a_timm_model(
    name: str, options: dict[str, Any], theirs: type[nn.Module], timm: ModuleType
) -> None:
    mishkit.register(libraries=["timm"])
    ours = getattr(mishkit, theirs.__name__)
    model = timm.create_model(name, act_layer=f"mishkit_{theirs.__name__.lower()}", **options)
    assert {type(module) for module in activations_in(model)} == {ours}
    # Where timm builds ReLU in place, ours are in place.
    assert {module.inplace for module in activations_in(model)} == {theirs is nn.Mish}
    twin = timm.create_model(name, act_layer=theirs, **options)
    assert len(activations_in(twin)) == len(activations_in(model))
    assert_trains_alike(model, twin, torch.randn(4, 3, 32, 32))
    assert repr(copy.deepcopy(model)) == repr(model)


def test_arguments_given_here_win_over_timms(timm: ModuleType) -> None:
    named = {
        "softplus2": ("softplus", {"beta": 2}),
        "mishkit_mish": ["Mish", {"inplace": False, "save": "output"}],  # as from a file
    }
    registered = mishkit.register(named=named, libraries=["timm"])
    assert registered["timm"] == [*("mishkit_" + name for name in mishkit.names()), "softplus2"]
    module = timm.layers.create_act_layer("softplus2", inplace=True)
    assert repr(module) == repr(mishkit.Softplus(beta=2, inplace=True))
    assert_same_bits(timm.layers.get_act_fn("softplus2")(X), mishkit.softplus(X, beta=2))
    module = timm.layers.create_act_layer("mishkit_mish", inplace=True)
    assert repr(module) == repr(mishkit.Mish(save="output"))
    x = X.clone()
    assert timm.layers.get_act_fn("mishkit_mish")(x, inplace=True) is not x
    # What was registered last counts.
    mishkit.register(libraries=["timm"])
    assert timm.layers.create_act_layer("mishkit_mish", inplace=True).inplace


@pytest.mark.parametrize("arguments", [{"trainable": True}, {"beta": -1}], ids=str)
def test_timms_inplace_is_not_obeyed_without_the_input(
    arguments: dict[str, Any], timm: ModuleType
) -> None:
    """Backward needs the input for trained parameters, and where f has no single minimum."""
    mishkit.register(named={"own_swish": ("swish", arguments)}, libraries=["timm"])
    model = timm.create_model("resnet18", layers=(1, 1, 1, 1), act_layer="own_swish")
    assert repr(model.act1) == repr(mishkit.Swish(**arguments))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    if "trainable" in arguments:
        assert model.act1.beta.grad is not None
        # The module is made of this; a function has no parameters.
        with pytest.raises(KeyError):
            timm.layers.get_act_fn("own_swish")


# ---- transformers ----


@every_function
def test_transformers_finds_every_name(case: Case, transformers: ModuleType) -> None:
    mishkit.register(libraries=["transformers"])
    name = "mishkit_" + case.a.name
    for module in (
        transformers.activations.ACT2FN[name],
        transformers.activations.ACT2CLS[name](),
        transformers.activations.get_activation(name),
    ):
        assert type(module) is module_of(case)
        assert repr(module) == repr(module_of(case)())


def bert(transformers: ModuleType, activation: str) -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(
        **sizes, vocab_size=99, intermediate_size=64, hidden_act=activation
    )
    return transformers.BertModel(config).eval()


def saved_and_loaded(model: nn.Module, folder: Path) -> nn.Module:
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder)


def test_a_transformers_model(transformers: ModuleType, tmp_path: Path) -> None:
    named = {"lean_gelu": ("gelu", {"save": "output"})}
    mishkit.register(named=named, libraries=["transformers"])
    model = bert(transformers, "lean_gelu")
    loaded = saved_and_loaded(model, tmp_path)
    for m in (model, loaded):
        (activation,) = activations_in(m)
        assert type(activation) is mishkit.GELU and activation.save == "output"
    assert_trains_alike(loaded, bert(transformers, "gelu"), torch.arange(14).view(2, 7))


def test_transformers_loads_trained_parameters(transformers: ModuleType, tmp_path: Path) -> None:
    named = {"own_swish": ("swish", {"trainable": True})}
    mishkit.register(named=named, libraries=["transformers"])
    model = bert(transformers, "own_swish")
    (activation,) = activations_in(model)
    with torch.no_grad():
        activation.beta.fill_(1.5)
    (activation,) = activations_in(saved_and_loaded(model, tmp_path))
    assert activation.beta.requires_grad and activation.beta.item() == 1.5


def test_transformers_loads_fixed_parameters(transformers: ModuleType, tmp_path: Path) -> None:
    mishkit.register(libraries=["transformers"])
    for name in (case.a.name for case in DEFAULTS if case.a.trainable):
        saved_and_loaded(bert(transformers, f"mishkit_{name}"), tmp_path / name)


# ---- names that the libraries have themselves ----


def test_their_names_are_not_taken_by_chance(timm: ModuleType, transformers: ModuleType) -> None:
    tables = [timm.layers.create_act._ACT_LAYER_DEFAULT, transformers.activations.ACT2FN]
    before = [raw(table) for table in tables]
    for options, library in [
        ({"named": {"gelu_pytorch_tanh": "gelu_tanh"}}, "transformers"),
        ({"named": {"hard_mish": "h_mish"}}, "timm"),
        ({"prefix": "hard_", "libraries": ["timm"]}, "timm"),
    ]:
        with pytest.raises(ValueError, match=f"register: {library} has its own .*use another"):
            mishkit.register(**options)
    assert [raw(table) for table in tables] == before


def test_the_empty_prefix_replaces_theirs(timm: ModuleType, transformers: ModuleType) -> None:
    """Theirs and ours compute the same under all these names, so that no model changes."""
    their_layers = {
        "timm": raw(timm.layers.create_act._ACT_LAYER_DEFAULT),
        "transformers": raw(transformers.activations.ACT2CLS),
    }
    registered = mishkit.register(prefix="")
    for library, names in registered.items():
        replaced = {
            name: their_layers[library][name] for name in names if name in their_layers[library]
        }
        assert {"gelu", "mish", "relu", "silu"} <= set(replaced)
        for name, theirs in replaced.items():
            got = mishkit.get(name)(X)
            torch.testing.assert_close(got, theirs()(X), msg=f"{library}'s {name}")
    assert set(registered["transformers"]) == set(mishkit.names())
    assert set(mishkit.names()) - set(registered["timm"]) <= {"hard_mish"}
    for layer in (timm.layers.get_act_layer("mish")(), transformers.activations.ACT2FN["mish"]):
        assert type(layer) is mishkit.Mish
    assert_same_bits(timm.layers.get_act_fn("mish")(X), mishkit.mish(X))
    assert type(timm.layers.get_act_layer("hard_mish")()) not in map(module_of, DEFAULTS)
    # Named, it is wanted.
    mishkit.register(prefix="", named={"hard_mish": "h_mish"}, libraries=["timm"])
    assert type(timm.layers.get_act_layer("hard_mish")()) is mishkit.HMish


@pytest.fixture(scope="module")
def mismatched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which torchvision has a library that does not load beside this torch, as PyPI's,
    which is built for CUDA, beside a torch for CPUs: its own import raises then."""
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        pytest.skip("torchvision is not installed")
    folder = tmp_path_factory.mktemp("mismatched")
    package = folder / "torchvision"
    package.mkdir()
    for file in Path(spec.origin).parent.iterdir():
        if not file.name.startswith(("_C", "__pycache__")):
            (package / file.name).symlink_to(file)
    (package / "_C.so").write_bytes(b"for another torch")
    return folder


@pytest.mark.parametrize(
    ("library", "use"),
    [
        ("timm", "mishkit.register(); mishkit.register(prefix='my_')"),
        pytest.param("transformers", "import mishkit.surgery.transformers", marks=pytest.mark.slow),
        pytest.param(
            "pytorch_lightning", "import mishkit.surgery.lightning", marks=pytest.mark.slow
        ),
    ],
)
def test_beside_a_torchvision_for_another_torch(library: str, use: str, mismatched: Path) -> None:
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    code = (
        "try:\n    import torchvision\n"
        "except RuntimeError as error:\n    assert 'torchvision::nms does not' in str(error)\n"
        "else:\n    raise AssertionError\n"
        f"import mishkit; {use}; import torchvision; print(torchvision.__file__)"
    )
    paths = [str(mismatched), *filter(None, sys.path)]
    done = interpreters.python(code, {**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(str(mismatched))
