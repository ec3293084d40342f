"""The modules: drop-in for torch.nn's, and everything that is done to a module."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from common import DEFAULTS, Case, assert_same_bits, every_case, every_function, every_saving
from torch import Tensor, nn

import mishkit

# By our names; modules whose torch.nn twin takes the same arguments.
ARGUMENTS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "ReLU": [((), {}), ((True,), {}), ((), {"inplace": True})],
    "ReLU6": [((), {}), ((True,), {})],
    "LeakyReLU": [((), {}), ((0.2,), {}), ((0.2, True), {}), ((), {"negative_slope": 0.3})],
    "ELU": [((), {}), ((0.5,), {}), ((2, True), {}), ((), {"alpha": 1.5})],
    "Softplus": [((), {}), ((2,), {}), ((2.0, 10), {}), ((), {"threshold": 3, "beta": 0.5})],
    "SiLU": [((), {}), ((True,), {})],
    "GELU": [((), {}), (("tanh",), {}), ((), {"approximate": "tanh"})],
    "Mish": [((), {}), ((True,), {})],
    "Hardswish": [((), {}), ((True,), {})],
}
TWINS = [(name, *given) for name, calls in ARGUMENTS.items() for given in calls]


def make(case: Case, **options: Any) -> nn.Module:
    named = {p.name: v for p, v in zip(case.a.parameters, case.parameters, strict=True)}
    return getattr(mishkit, case.a.module_name)(**named, **options)


@pytest.mark.parametrize(("name", "args", "kwargs"), TWINS, ids=str)
def test_torchs_twin(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ours, theirs = getattr(mishkit, name)(*args, **kwargs), getattr(nn, name)(*args, **kwargs)
    x = torch.linspace(-9, 9, 400)
    torch.testing.assert_close(ours(x.clone()), theirs(x.clone()))
    # What torch's repr shows, ours shows in the same words.
    for shown in filter(None, theirs.extra_repr().split(", ")):
        key, value = shown.split("=")
        assert f"{key}=" in ours.extra_repr() and str(getattr(ours, key)) == value.strip("'")


def test_every_twin_is_compared() -> None:
    assert {c.a.module_name for c in DEFAULTS if c.a.torch_function} <= set(ARGUMENTS)


@every_case
@every_saving
def test_a_module_is_its_function(case: Case, options: dict[str, Any]) -> None:
    module = make(case, **options)
    x = torch.randn(3, 41)
    assert_same_bits(module(x.clone()), case.call(x))
    y = module(x)
    assert (y is x) == bool(options.get("inplace"))
    assert not list(module.parameters()) and not module.state_dict()
    assert isinstance(module, nn.Module) and type(module).__name__ == case.a.module_name


@every_case
@every_saving
def test_copies_keep_their_arguments(case: Case, options: dict[str, Any], tmp_path: Path) -> None:
    module = make(case, **options)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(module),
        copy.copy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    ]
    x = torch.randn(41)
    for other in copies:
        assert type(other) is type(module) and repr(other) == repr(module)
        assert_same_bits(other(x.clone()), module(x.clone()))


@every_function
def test_repr_shows_what_differs(case: Case) -> None:
    shown = repr(make(case))
    assert "inplace" not in shown and "save" not in shown
    shown = repr(make(case, inplace=True, save="output"))
    assert "inplace=True" in shown and "save='output'" in shown
    for p in case.a.parameters:
        assert f"{p.name}=" in shown


@every_function
def test_options_can_be_changed_afterwards(case: Case) -> None:
    """As torch.nn's: tools that switch `inplace` off set the attribute."""
    module = make(case, inplace=True)
    module.inplace = False
    x = torch.randn(5)
    assert module(x) is not x


@every_function
def test_within_a_network(case: Case) -> None:
    """Training, evaluation, conversion, hooks: the module is a module."""
    net = nn.Sequential(nn.Linear(4, 8), make(case, save="output"), nn.Linear(8, 2))
    seen: list[Tensor] = []
    net[1].register_forward_hook(lambda module, args, output: seen.append(output))
    net.eval().double()
    net(torch.randn(3, 4, dtype=torch.float64)).sum().backward()
    assert seen[0].dtype == torch.float64 and net[0].weight.grad is not None
    net.to(torch.bfloat16).train()
    assert net(torch.randn(3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@every_function
@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {"save": "nonsense"}, 'save must be "input", "output" or "copy"'),
        ((), {"slope": 1}, "unexpected keyword argument 'slope'"),
        ((1,) * 9, {}, "positional arguments? but 10 were given"),
    ],
    ids=["save", "unknown", "too_many"],
)
def test_misuse(case: Case, args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as error:
        getattr(mishkit, case.a.module_name)(*args, **kwargs)
    assert case.a.module_name in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_ours_are_instances_of_torchs_classes(name: str) -> None:
    """Since libraries ask for these."""
    assert isinstance(getattr(mishkit, name)(), getattr(torch.nn, name))
