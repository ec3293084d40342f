"""Finding a model's activations, and putting others in their place."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mishkit as mk
from mishkit.surgery.known import FUNCTION_NAMES, identify, identify_function
from mishkit.surgery.slots import restore, slots


def in_slots(model: nn.Module) -> dict[str, str]:
    return {slot.name: slot.known.function for slot in slots(model) if slot.known}


@pytest.mark.parametrize("name", mk.names())
def test_our_modules_are_known_with_their_parameters(name: str) -> None:
    module = mk.get(name, save="output")
    known = identify(module)
    assert known is not None and known.function == name and known.save == "output"
    x = torch.randn(64)
    torch.testing.assert_close(known.module(save="output")(x), module(x), rtol=0, atol=0)
    torch.testing.assert_close(known.call()(x), module(x), rtol=0, atol=0)
    assert identify_function(known.call(save="output")) == known or known.state


@pytest.mark.parametrize(
    ("module", "function", "parameters"),
    [
        (nn.ReLU(inplace=True), "relu", {}),
        (nn.SiLU(), "silu", {}),
        (nn.GELU(), "gelu", {}),
        (nn.GELU("tanh"), "gelu_tanh", {}),
        (nn.Mish(), "mish", {}),
        (nn.Hardswish(), "hardswish", {}),
        (nn.Softplus(2, 10), "softplus", {"beta": 2, "threshold": 10}),
        (nn.ReLU6(inplace=True), "relu6", {}),
        (nn.LeakyReLU(0.2), "leaky_relu", {"negative_slope": 0.2}),
        (nn.ELU(0.5, inplace=True), "elu", {"alpha": 0.5}),
    ],
)
def test_what_takes_the_place_of_torch_s_computes_the_same(
    module: nn.Module, function: str, parameters: dict[str, float]
) -> None:
    known = identify(module)
    assert known is not None and known.ours
    assert (known.function, known.parameters) == (function, parameters)
    assert known.inplace == getattr(module, "inplace", False)
    x = torch.randn(1000) * 4
    torch.testing.assert_close(known.module()(x), module(x.clone()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("library", "names"),
    [
        ("transformers.activations", "GELUActivation GELUTanh NewGELUActivation SiLUActivation "
         "FastGELUActivation AccurateGELUActivation QuickGELUActivation MishActivation "
         "ReLUSquaredActivation"),
        ("timm.layers.activations", "Swish Mish HardSwish HardMish GELU GELUTanh QuickGELU"),
        ("timm.layers.activations_me", "SwishMe MishMe HardSwishMe HardMishMe"),
    ],
)  # fmt: skip
def test_what_takes_the_place_of_other_libraries_computes_the_same(
    library: str, names: str, torchvision: None
) -> None:
    classes = pytest.importorskip(library)
    x = torch.randn(1000) * 4
    for name in names.split():
        module = getattr(classes, name)()
        known = identify(module)
        assert known is not None and known.ours, name
        torch.testing.assert_close(known.module()(x), module(x.clone()), rtol=1e-5, atol=2e-6)


def test_a_subclass_or_a_patched_module_is_not_what_its_class_says() -> None:
    class Mine(nn.SiLU):
        pass

    patched = nn.SiLU()
    patched.forward = torch.abs
    assert identify(Mine()) is None and identify(patched) is None
    assert identify(nn.Linear(1, 1)) is None
    assert identify_function(torch.abs) is None
    assert identify_function(functools.partial(F.gelu, approximate="tanh")).function == "gelu_tanh"
    known = identify_function(functools.partial(F.leaky_relu, negative_slope=0.2))
    assert known is not None and known.values == (0.2,)
    assert identify_function(functools.partial(F.celu, alpha=0.2)) is None


def test_slots_have_every_name_and_no_inside_of_what_is_known() -> None:
    shared = nn.SiLU()
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), shared), shared, nn.PReLU())
    model.add_module("encoder", nn.TransformerEncoderLayer(2, 1, activation="gelu"))
    assert in_slots(model) == {
        "0.1": "silu",
        "1": "silu",
        "2": "prelu",
        "encoder.activation": "gelu",
    }
    assert {"leaky_relu", "mish", "gelu_tanh"} <= FUNCTION_NAMES


def test_hooks_and_mode_go_over_and_come_back() -> None:
    model = nn.Sequential(nn.SiLU(), nn.TransformerEncoderLayer(2, 1)).eval()
    before = str(model)
    calls = []
    handle = model[0].register_forward_hook(lambda module, x, y: calls.append(type(module)))
    for slot in slots(model):
        if slot.known is not None:
            slot.put(mk.Mish() if isinstance(slot.value, nn.Module) else mk.mish)
            slot.put(mk.HMish() if isinstance(slot.value, nn.Module) else mk.h_mish)
    assert in_slots(model) == {"0": "h_mish", "1.activation": "h_mish"}
    assert not model[0].training and model[1].activation_relu_or_gelu == 0
    model[0](torch.ones(1))
    assert not model.state_dict().keys() ^ nn.Sequential(*model).state_dict().keys()

    copied = copy.deepcopy(model)
    for m in (model, copied):
        assert sorted(restore(m)) == ["0", "1.activation"] and restore(m) == []
        assert str(m) == before and m[1].activation is F.relu
        assert m[1].activation_relu_or_gelu == 1
    model[0](torch.ones(1))
    handle.remove()
    model[0](torch.ones(1))
    assert calls == [mk.HMish, nn.SiLU]
