"""Removing silent units: planted ones go, with all that is tied to them, and nothing else does."""

from __future__ import annotations

import contextlib
import copy
import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from common import ROOT
from torch import Tensor, nn

import mishkit as mk
from mishkit.surgery.known import identify
from mishkit.surgery.prune import FLAT
from mishkit.surgery.prune.run import floating_tensors

pytest.importorskip("torch_pruning")
# torch-pruning looks for timm, and that for torchvision.
pytestmark = pytest.mark.usefixtures("torchvision")


def silence(layer: nn.Module, units: list[int], at: float = -9.0) -> None:
    """Let these outputs of a layer be a constant."""
    with torch.no_grad():
        if layer.weight.ndim == 1:  # BatchNorm's
            layer.weight[units] = 0
        else:
            layer.weight[units] = torch.zeros_like(layer.weight[units])
        layer.bias[units] = at


def scramble(model: nn.Module) -> nn.Module:
    """BatchNorms with statistics and weights, as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            for tensor in (module.running_mean, module.weight, module.bias):
                nn.init.normal_(tensor, 0.5, 0.3)
    return model


class Residual(nn.Module):
    """Units 1 and 4 are silent inside; 0 and 2 after the sum, where conv1 reads 0 too but not 2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_act = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()
        self.conv1, self.act = nn.Conv2d(6, 5, 3, padding=1), mk.HMish()
        self.conv2, self.last_act = nn.Conv2d(5, 6, 3, padding=1), nn.ReLU()
        self.head = nn.Conv2d(6, 2, 1)
        silence(self.conv1, [1, 4])
        silence(self.stem, [0])
        silence(self.conv2, [0, 2], -99)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_act(self.stem(x))
        return self.head(self.last_act(x + self.conv2(self.act(self.conv1(x)))))


class Depthwise(nn.Module):
    """Units 1 and 2 are silent before the depthwise convolution, 1 and 3 after it."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.widen, self.act1 = nn.Conv2d(3, 6, 1), nn.Hardswish()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.act2 = nn.BatchNorm2d(6), nn.Hardswish()
        self.narrow = nn.Conv2d(6, 4, 1, bias=bias)
        scramble(self)
        silence(self.widen, [1, 2])
        silence(self.norm, [1, 3])

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.act1(self.widen(x)))
        return self.narrow(self.act2(self.norm(x)))


class GLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)
        self.act = mk.HardMish(k=3)
        silence(self.gate, [0, 3, 7])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.gate(x)) * self.up(x))


class Joined(nn.Module):
    """Two branches, silent at 1 and at 0 and 2, side by side in what `head` reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 3, 1)
        self.act, self.head = nn.ReLU(), nn.Conv2d(7, 2, 1)
        silence(self.a, [1])
        silence(self.b, [0, 2])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.act(self.a(x)), self.act(self.b(x))], 1))


class AddedToTwo(nn.Module):
    """What one layer makes is tied to what two make; silence is a constant behind the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 3), nn.Linear(4, 3)
        self.act, self.norm, self.head = nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 2)
        scramble(self)
        silence(self.a, [1, 4, 5])
        silence(self.b, [1])
        silence(self.c, [1, 2])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.act(self.a(x) + torch.cat([self.b(x), self.c(x)], 1))))


class Dense(nn.Module):
    """Unit 1 is silent in both norms; 5, which the first convolution makes, in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1, self.conv1 = (
            nn.Conv2d(3, 4, 1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 3, 1),
        )
        self.norm2, self.conv2 = nn.BatchNorm2d(7), nn.Conv2d(7, 3, 1)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        for norm, silent in ((self.norm1, [1]), (self.norm2, [1, 5])):
            nn.init.constant_(norm.bias, 9)
            silence(norm, silent)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(self.act1(self.norm1(x)))], 1)
        return self.conv2(self.act2(self.norm2(x)))


class PartlyMade(nn.Module):
    """Units 1 and 2 are silent; the activation also sees the inputs, of which 0 is."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(4, 3), nn.ReLU(), nn.Linear(7, 2)
        silence(self.fc1, [1, 2])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([-x[:, :1].abs(), x[:, 1:]], 1)
        return self.fc2(self.act(torch.cat([self.fc1(x), x], 1)))


class Scaled(nn.Module):
    """A gate that is a single number, which is no unit of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)
        self.scale, self.gate = nn.Parameter(torch.tensor(-1.0)), nn.ReLU()
        silence(self.fc1, [2, 5])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x))) + self.gate(self.scale)


class Between(nn.Module):
    """linear, activation, something, linear; units 2 and 5 of 6 are silent."""

    def __init__(self, between: Callable[[Tensor], Tensor] | nn.Module, width: int = 6) -> None:
        super().__init__()
        self.fc1, self.act, self.between = nn.Linear(4, 6), nn.ReLU(), between
        self.fc2 = nn.Linear(width, 3)
        silence(self.fc1, [2, 5])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.between(self.act(self.fc1(x))))


class Tied(Between):
    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.other = nn.Linear(6, 3)
        self.other.weight = self.fc2.weight


class PutsOut(Between):
    def __init__(self) -> None:
        super().__init__(nn.Identity())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.act(self.fc1(x))
        return {"hidden": hidden, "out": self.fc2(hidden)}


def conv_block(act: nn.Module) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), act, nn.Conv2d(8, 4, 3, padding=1)
    )
    silence(scramble(model)[1], [0, 6, 7], -3.5)
    return model


def perceptron(act: nn.Module, silent: list[int]) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 3))
    silence(model[0], silent)
    return model


def grouped() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1, groups=2))
    silence(model[0], [0, 3])
    return model


def flattened() -> nn.Module:
    """Each channel is four features of the linear layer."""
    layers = nn.Conv2d(3, 6, 1), nn.ReLU(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(24, 3)
    silence(layers[0], [0, 4])
    return nn.Sequential(*layers)


def constant() -> nn.Module:
    """What BatchNorm makes of silence is a constant, which the bias of the next layer takes up."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3))
    silence(scramble(model)[0], [2, 5])
    return model


def convolved(padding: int = 0) -> nn.Module:
    """The same constant, which nine taps of a convolution add up."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 3, padding=padding)
    )
    silence(scramble(model)[0], [2, 5])
    return model


def padded() -> nn.Module:
    """And zeros beside it."""
    return convolved(padding=1)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=10, batch_first=True)
    silence(layer.linear1, [1, 2, 9])
    return nn.Sequential(layer)


def shared_activation() -> nn.Module:
    act = mk.HMish()
    model = nn.Sequential(nn.Linear(4, 6), act, nn.Linear(6, 5), act, nn.Linear(5, 3))
    silence(model[0], [2])
    silence(model[2], [0, 4])
    return model


@dataclass
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    sites: dict[str, tuple[list[int], list[int], str]]
    """By site: the silent units, those removed, and a part of the reason why others stay."""
    parameters: tuple[int, int]
    macs: tuple[int, int]


IMAGE, ROW = (2, 3, 5, 5), (64, 4)
KEPT = ([2, 5], [], "")
CASES = {
    "conv": Case(
        lambda: conv_block(nn.ReLU()),
        IMAGE,
        {"2": ([0, 6, 7], [0, 6, 7], "")},
        # 27 weights and a bias, two of BatchNorm, 36 weights a unit; the last bias
        (8 * 66 + 4, 5 * 66 + 4),
        (50 * (8 * 27 + 8 * 36), 50 * (5 * 27 + 5 * 36)),
    ),
    "residual": Case(
        Residual,
        IMAGE,
        {
            "stem_act": ([0], [0], ""),
            "act": ([1, 4], [1, 4], ""),
            "last_act": ([0, 2], [0], "conv1 reads other values than 0"),
        },
        (6 * 28 + 5 * 55 + 6 * 46 + 14, 5 * 28 + 3 * 46 + 5 * 28 + 12),
        (50 * (6 * 27 + 2 * 270 + 12), 50 * (5 * 27 + 2 * 135 + 10)),
    ),
    # Unit 2 comes out of the depthwise convolution as a constant.
    "depthwise": Case(
        lambda: Depthwise(bias=False),
        IMAGE,
        {
            "act1": ([1, 2], [1, 3], "narrow reads a constant that it can't take up"),
            "act2": ([1, 3], [1, 3], ""),
        },
        (6 * (4 + 10 + 2 + 4), 4 * (4 + 10 + 2 + 4)),
        (50 * 6 * (3 + 9 + 4), 50 * 4 * (3 + 9 + 4)),
    ),
    "depthwise, with a bias to take up": Case(
        lambda: Depthwise(bias=True),
        IMAGE,
        {"act1": ([1, 2], [1, 2, 3], ""), "act2": ([1, 3], [1, 2, 3], "")},
        (6 * 20 + 4, 3 * 20 + 4),
        (50 * 6 * 16, 50 * 3 * 16),
    ),
    "glu": Case(
        GLU,
        (2, 7, 4),
        {"act": ([0, 3, 7], [0, 3, 7], "")},
        (8 * 14 + 4, 5 * 14 + 4),
        (14 * 8 * 12, 14 * 5 * 12),
    ),
    "concat": Case(
        Joined,
        IMAGE,
        {"act": ([1], [1], ""), "act#2": ([0, 2], [0, 2], "")},
        (7 * 6 + 2, 4 * 6 + 2),
        (50 * 7 * 5, 50 * 4 * 5),
    ),
    "flattened": Case(
        flattened, IMAGE, {"1": ([0, 4], [0, 4], "")},
        (6 * (4 + 4 * 3) + 3, 4 * (4 + 4 * 3) + 3), (6 * (50 * 3 + 24), 4 * (50 * 3 + 24)),
    ),
    "constant": Case(
        constant, ROW, {"1": ([2, 5], [2, 5], "")}, (6 * 10 + 3, 4 * 10 + 3), (64 * 42, 64 * 28)
    ),
    "a constant, convolved": Case(
        convolved, IMAGE, {"1": ([2, 5], [2, 5], "")},
        (6 * (6 + 27) + 3, 4 * (6 + 27) + 3), (6 * (50 * 3 + 18 * 27), 4 * (50 * 3 + 18 * 27)),
    ),
    "added to two": Case(
        AddedToTwo,
        ROW,
        {"act": ([1, 4, 5], [1, 4, 5], "")},
        (6 * 9 + 6 * 5 + 2, 3 * 9 + 3 * 5 + 2),
        (64 * (24 + 24 + 12), 64 * (12 + 12 + 6)),
    ),
    "dense": Case(
        Dense,
        IMAGE,
        {"act1": ([1], [1], ""), "act2": ([1, 5], [1, 5], "")},
        (4 * 6 + 3 * 5 + 7 * 5 + 3, 3 * 6 + 2 * 4 + 5 * 5 + 3),
        (50 * (12 + 12 + 21), 50 * (9 + 6 + 15)),
    ),
    "partly made": Case(
        PartlyMade,
        ROW,
        {"act": ([1, 2, 3], [1, 2], "no layer before it makes its units")},
        (3 * 5 + 7 * 2 + 2, 1 * 5 + 5 * 2 + 2),
        (64 * (12 + 14), 64 * (4 + 10)),
    ),
    "a number": Case(
        Scaled,
        ROW,
        {
            "act": ([2, 5], [2, 5], ""),
            "gate": ([0], [], "no layer before it makes its units"),
        },
        (6 * 8 + 4, 4 * 8 + 4),
        (64 * 42, 64 * 28),
    ),
    "shared activation": Case(
        shared_activation,
        ROW,
        {"1": ([2], [2], ""), "1#2": ([0, 4], [0, 4], "")},
        (6 * 5 + 5 * 7 + 5 * 3 + 3, 5 * 5 + 3 * 6 + 3 * 3 + 3),
        (64 * (24 + 30 + 15), 64 * (20 + 15 + 9)),
    ),
    "all of a layer": Case(
        lambda: perceptron(nn.ReLU(), list(range(6))),
        ROW,
        {"1": ([0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5], "one unit is kept")},
        (6 * 8 + 3, 8 + 3),
        (64 * 42, 64 * 7),
    ),
}  # fmt: skip
for name, case, reason in (
    ("nothing", lambda: perceptron(nn.ReLU(), []), None),
    ("layer norm", lambda: Between(nn.LayerNorm(6)), "between (LayerNorm) normalises over"),
    ("softmax", lambda: Between(nn.Softmax(-1)), "Softmax mixes the units"),
    ("a mean", lambda: Between(lambda x: x * (1 + x.mean(-1, True))), "an output changes by"),
    ("a width", lambda: Between(lambda x: x.reshape(-1, 6) + 0), "the model fails: RuntimeError"),
    ("shared weights", Tied, "fc2 shares its weights"),
    ("an output", PutsOut, "the model puts it out"),
):
    CASES[f"not: {name}"] = Case(
        case, ROW, {"act" if reason else "1": KEPT if reason is None else ([2, 5], [], reason)},
        (0, 0), (0, 0),
    )  # fmt: skip
CASES["not: nothing"].sites["1"] = ([], [], "")
CASES["not: grouped"] = Case(
    grouped, IMAGE, {"1": ([0, 3], [], "2 is a grouped convolution")}, (0, 0), (0, 0)
)
CASES["not: a constant beside zeros"] = Case(
    padded, IMAGE, {"1": ([2, 5], [], "3 reads a constant that it can't take up")}, (0, 0), (0, 0)
)


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    y = model(x)
    return list(y.values()) if isinstance(y, dict) else [y]


def furthest(ys: list[Tensor], zs: list[Tensor]) -> float:
    return max(float((y - z).detach().abs().max()) for y, z in zip(ys, zs, strict=True))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_is_planted_is_removed_and_nothing_else(case: Case) -> None:
    model, x = case.make().eval(), torch.randn(case.shape)
    wanted = outputs(model, x)
    before = sum(p.numel() for p in model.parameters())
    report = mk.prune(model, x)
    units = {s.name: (list(s.silent_units), list(s.removed_units)) for s in report.sites}
    assert units == {name: site[:2] for name, site in case.sites.items()}, str(report)
    for site in report.sites:
        reason = case.sites[site.name][2]
        assert (reason in site.why_not) and bool(reason) == bool(site.why_not), site.why_not
    after = sum(p.numel() for p in model.parameters())
    assert (report.parameters_before, report.parameters_after) == (before, after)
    if case.parameters[0]:
        assert (before, after) == case.parameters
        assert (report.macs_before, report.macs_after) == case.macs
    else:
        assert before == after and report.macs_before == report.macs_after > 0
        assert report.removed == 0 and report.max_change == 0
    got = outputs(model, x)
    for y, z in zip(got, wanted, strict=True):
        torch.testing.assert_close(y, z, rtol=1e-5, atol=1e-6)
    assert report.max_change == furthest(got, wanted) <= 1e-5 and report.max_output > 0

    # It can be trained, and saved whole.
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    sum(y.square().sum() for y in outputs(model, x)).backward()
    optimizer.step()
    if "lambda" not in str(getattr(model, "between", "")):
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False).eval()
        assert str(loaded) == str(model.eval())
        torch.testing.assert_close(outputs(loaded, x), outputs(model, x), rtol=0, atol=0)
    again = mk.prune(model.eval(), x, dry_run=True)
    assert all(s.removed == 0 or case.parameters[0] == 0 for s in again.sites), str(again)


def test_every_flat_function_is_a_site_and_no_other() -> None:
    modules = [
        *(nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Hardsigmoid(), nn.Hardshrink()),
        *(nn.Softshrink(), nn.GELU(), nn.Mish(), nn.SiLU(), nn.Tanh()),
        *(mk.get(name) for name in mk.names()),
    ]
    assert {identify(module).function for module in modules} >= FLAT
    x = torch.randn(ROW)
    for module in modules:
        known = identify(module).function
        flat = float(module(torch.tensor(-4.0, dtype=torch.float64))) == 0
        # These two are 0 around 0.
        flat = flat or known in ("hardshrink", "softshrink")
        model = perceptron(module, [])
        silence(model[0], [1, 3], 0.0 if known.endswith("shrink") else -9.0)
        report = mk.prune(model, x)
        assert len(report.sites) == flat == (known in FLAT), known
        assert report.removed == model[2].in_features - 6 + 4 * flat == 2 * flat or not flat


def test_functions_that_modules_hold_are_sites() -> None:
    model, x = encoder(), torch.randn(3, 5, 8)
    wanted = model.eval()(x)
    report = mk.prune(model, x)
    (site,) = report.sites
    assert (site.name, site.removed_units) == ("0.activation", (1, 2, 9))
    assert model[0].activation is F.relu and torch.backends.mha.get_fastpath_enabled()
    assert model[0].linear2.in_features == 7
    # Four projections of 8 × 8 and two products with the 5 keys of each position; then 16 a unit.
    assert report.macs_before == 15 * (4 * 64 + 2 * 5 * 8 + 10 * 16)
    assert report.macs_before - report.macs_after == 15 * 3 * 16
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)


def test_the_data_decide_and_not_the_example() -> None:
    """A unit that is silent for positive inputs alone; three batches, one without a sample."""
    model = perceptron(nn.ReLU(), [0])
    with torch.no_grad():
        model[0].weight[1:], model[0].bias[1:] = 1, 0
        model[0].weight[3] = -1
    positive = [torch.rand(6, 4), torch.rand(0, 4), torch.rand(2, 4)]
    wanted = model(positive[2])
    example = 9 * torch.randn(64, 4)
    assert mk.prune(copy.deepcopy(model), example).sites[0].removed_units == (0,)
    assert mk.prune(copy.deepcopy(model), example, data=[*positive, -positive[0]]).removed == 1
    for data in (
        positive,
        (batch for batch in positive),
        [(batch,) for batch in positive],
        [{"input": batch} for batch in positive],
    ):
        pruned = copy.deepcopy(model)
        report = mk.prune(pruned, {"input": example}, data=data)
        assert report.sites[0].removed_units == (0, 3) and report.compared == 3
        torch.testing.assert_close(pruned(positive[2]), wanted)


class Attention(nn.Module):
    """By ReLU, whose scores are as wide as the sequence is long; one activation for all."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(4, 6), nn.Linear(6, 4), nn.ReLU()
        silence(self.fc1, [2, 5])

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(self.act(self.fc1(x)))
        return x if len(x) == 1 else self.act(x @ x.mT) @ x


def test_a_width_that_changes_with_the_inputs_is_told() -> None:
    batches = [torch.randn(2, 5, 4), torch.randn(2, 7, 4), torch.randn(1, 7, 4)]
    for data in (batches, [batches[1], batches[0]], [torch.randn(3, 6, 4), batches[0]]):
        model = Attention()
        report = mk.prune(model, batches[0], data=data)
        first, second = report.sites
        assert (first.removed_units, first.why_not) == ((2, 5), "")
        assert (second.name, second.units, second.silent) == ("act#2", 0, 0)
        assert second.why_not == "its width changes with the inputs"

    class Rows(nn.Sequential):
        """Takes images, or the rows that become of them."""

        def forward(self, x: Tensor) -> Tensor:
            x = self[1](self[0](x)).amax((2, 3)) if x.ndim > 2 else x
            return self[3](self[1](self[2](x)))

    rows = Rows(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Linear(4, 6), nn.Linear(6, 2))
    silence(rows[2], [2, 5])
    report = mk.prune(rows, torch.randn(IMAGE), data=[torch.randn(ROW)])
    assert [site.why_not for site in report.sites] == [
        "its width changes with the inputs",
        "it was not called with the data",
    ]


@pytest.mark.parametrize(
    ("options", "silent"),
    [
        ({}, [0]),
        ({"threshold": 0.05}, [0, 1]),
        ({"fraction": 0.1}, [0, 2]),
        ({"fraction": 0.099}, [0]),
        ({"threshold": 0.05, "fraction": 0.1}, [0, 1, 2]),
    ],
)
def test_nearly_silent_units_go_if_asked_and_the_change_is_told(
    options: dict[str, float], silent: list[int]
) -> None:
    """Unit 1 gives 0.04 at most, unit 2 is active for one of ten samples."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[0].bias.zero_()
    x = torch.rand(10, 4) + 0.1
    x[:, 0] = -1
    x[:, 1] = 0.04 * x[:, 1] / x[:, 1].max()
    x[1:, 2] = -1
    hidden = model[1](model[0](x))
    hidden[:, silent] = 0
    original, masked = model(x), model[2](hidden)
    report = mk.prune(model, x, **options)
    assert list(report.sites[0].removed_units) == silent
    torch.testing.assert_close(model(x), masked)
    assert report.max_change == pytest.approx(furthest([masked], [original]), abs=1e-6)
    assert (report.max_change > 1e-4) == (len(silent) > 1)


def test_a_nan_is_not_silent() -> None:
    model, x = perceptron(nn.ReLU(), [1]), torch.randn(ROW)
    x[0, 0] = torch.nan
    report = mk.prune(model, x)
    assert report.silent == 0 and report.removed == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, x = conv_block(mk.HMish(inplace=True)).to(dtype).eval(), torch.randn(IMAGE).to(dtype)
    wanted = model(x)
    assert mk.prune(model, x).removed == 3
    torch.testing.assert_close(model(x), wanted)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_what_is_no_business_of_pruning_stays() -> None:
    model = conv_block(mk.HMish(save="output")).train()
    model[1].eval()
    for parameter in (model[0].weight, model[3].bias):
        parameter.requires_grad_(False)
    calls = []
    handle = model[2].register_forward_hook(lambda *_: calls.append(1))
    kept = [1, 2, 3, 4, 5]
    wanted = {
        name: tensor[kept] if name.split(".")[0] in "01" and tensor.ndim else tensor
        for name, tensor in model.state_dict().items()
    }
    wanted["3.weight"] = wanted["3.weight"][:, kept]
    wanted = {name: tensor.clone() for name, tensor in wanted.items()}
    everything = copy.deepcopy(model)

    dry = mk.prune(model, torch.randn(IMAGE), dry_run=True)
    assert str(dry).endswith("dry run: the model is as it was") and dry.removed == 3
    assert repr(model) == repr(everything)
    torch.testing.assert_close(model.state_dict(), everything.state_dict(), rtol=0, atol=0)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["0.weight", "3.bias"]

    report = mk.prune(model, torch.randn(IMAGE))
    assert report.parameters_after == dry.parameters_after < dry.parameters_before
    assert report.macs_after == dry.macs_after
    torch.testing.assert_close(model.state_dict(), wanted, rtol=0, atol=0)
    assert frozen == [name for name, p in model.named_parameters() if not p.requires_grad]
    assert [module.training for module in model] == [True, False, True, True]
    assert isinstance(model[2], mk.HMish) and model[2].save == "output"
    calls.clear()
    handle.remove()
    model(torch.randn(IMAGE))
    assert calls == [] and not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_buffer_that_each_run_writes_to_stays(dry_run: bool) -> None:
    class Counting(Between):
        def __init__(self) -> None:
            super().__init__(nn.Identity())
            self.register_buffer("runs", torch.tensor(3))

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            return super().forward(x)

    model = Counting()
    runs = model.runs
    assert mk.prune(model, torch.randn(ROW), dry_run=dry_run).removed == 2
    assert model.runs is runs and runs == 3


def test_a_model_that_fails_is_left_as_it_was() -> None:
    def fail(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # in the midst of tracing
            raise ArithmeticError("not today")
        return x

    model = Between(fail)
    with pytest.raises(ArithmeticError, match="not today"):
        mk.prune(model, torch.randn(ROW))
    assert model.training and all(
        not held for m in model.modules() for held in (m._forward_hooks, m._forward_pre_hooks)
    )


def test_one_bad_group_does_not_stop_the_others() -> None:
    model = nn.Sequential(
        Between(lambda x: x * (1 + x.mean(-1, True))), perceptron(nn.ReLU(), [0, 1])
    )
    model.insert(1, nn.Linear(3, 4))
    x = 9 * torch.randn(ROW)
    wanted, hidden = model(x), model[2][1](model[2][0](model[1](model[0](x))))
    report = mk.prune(model, x)
    assert [site.removed for site in report.sites] == [0, int((hidden == 0).all(0).sum())]
    assert report.sites[0].silent == 2 <= report.removed
    assert "an output changes by" in report.sites[0].why_not
    torch.testing.assert_close(model(x), wanted)


def test_only_the_sites_that_are_named() -> None:
    def make() -> nn.Module:
        return nn.Sequential(
            *(nn.Sequential(perceptron(act, [0]), nn.Linear(3, 4)) for act in (nn.ReLU(), nn.ELU()))
        )

    x = torch.randn(ROW)
    for sites, names in (
        (None, ["0.0.1"]),
        ("0.*", ["0.0.1"]),
        (["*.0.1"], ["0.0.1", "1.0.1"]),
        ("1.0.1", ["1.0.1"]),
    ):
        report = mk.prune(make(), x, sites=sites, dry_run=True)
        assert [site.name for site in report.sites] == names


def test_the_table() -> None:
    model = Residual().eval()
    lines = str(mk.prune(model, torch.zeros(IMAGE))).splitlines()
    assert lines[0].split() == ["site", "function", "units", "silent", "removed", "why", "not"]
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["stem_act", "relu"],
        ["act", "h_mish"],
        ["last_act", "relu"],
    ]
    assert lines[5].startswith("parameters 733 -> ") and lines[6].startswith("MACs       35,700 ->")
    assert lines[7].startswith("greatest change of an output: ") and "1 batch)" in lines[7]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "give inputs"),
        ((torch.ones(1, 4),), {"threshold": -1}, "threshold must not be below 0"),
        ((torch.ones(1, 4),), {"fraction": 1}, r"fraction must be in \[0, 1\)"),
        ((torch.ones(1, 4),), {"sites": "act"}, '"act" is no activation .* it has 1'),
        ((torch.ones(1, 4),), {"data": []}, "data holds no batch"),
    ],
)
def test_wrong_use(arguments: tuple[Tensor, ...], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"mishkit.prune: .*{message}"):
        mk.prune(perceptron(nn.ReLU(), []), *arguments, **options)


def test_data_are_batches_and_not_one() -> None:
    for data in (torch.ones(3, 4), {"input": torch.ones(3, 4)}):
        with pytest.raises(TypeError, match=r"mishkit.prune: data must be an iterable of batches"):
            mk.prune(perceptron(nn.ReLU(), []), torch.ones(1, 4), data=data)


def test_without_torch_pruning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .*torch-pruning"):
        mk.prune(perceptron(nn.ReLU(), []), torch.ones(1, 4))


def test_normalisation_and_activation_in_one_module() -> None:
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1),
        layers.BatchNormAct2d(6, act_layer=nn.ReLU),
        layers.SqueezeExcite(6, rd_channels=3, act_layer=nn.ReLU),
        nn.Conv2d(6, 2, 1),
    )
    silence(scramble(model)[1], [0, 5])
    x = torch.randn(IMAGE)
    wanted = model.eval()(x)
    report = mk.prune(model, x, sites="1.act")
    assert report.sites[0].removed_units == (0, 5)
    assert model[2].fc1.in_channels == model[2].fc2.out_channels == 4
    torch.testing.assert_close(model(x), wanted)


def test_the_how_to_runs_and_prints_what_it_says() -> None:
    path = ROOT / "docs" / "prune.md"
    text = path.read_text()
    namespace: dict[str, object] = {}
    printed = io.StringIO()
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        line = text[: block.start(1)].count("\n")
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + block[1], str(path), "exec"), namespace)
    (shown,) = re.findall(r"^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE)

    def without_rounding(table: str) -> str:
        return re.sub(r"greatest change.*", "", table)

    assert without_rounding(printed.getvalue()).startswith(without_rounding(shown))


# ---- training mode, which is not what is watched ----


class Branches(nn.Module):
    """Two of eight units are silent in evaluation; in training there is more to it."""

    def __init__(self, more: Callable[[Tensor], Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)
        silence(self.first, [1, 5])
        self.more, self.layers = more, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        hidden = self.act(self.first(x))
        if not self.training:
            return self.last(hidden)
        if self.layers:  # an auxiliary head
            return self.last(hidden), self.layers[0](hidden)
        return self.last(self.more(hidden))


def units(x: Tensor) -> Tensor:
    return x * torch.ones(8)


@pytest.mark.parametrize(
    ("more", "layers", "reason"),
    [
        (units, (), "fails in training mode: RuntimeError: The size of tensor"),
        (nn.Identity(), (nn.Linear(8, 2),), "fails in training mode: RuntimeError: mat1"),
        (lambda x: x[:, :8].reshape(-1, 8), (), "fails in training mode: RuntimeError: mat1"),
    ],
    ids=["mask", "auxiliary head", "view"],
)
def test_units_that_training_alone_needs_stay(
    more: Callable[[Tensor], Tensor], layers: tuple[nn.Module, ...], reason: str
) -> None:
    model, x = Branches(more, *layers), torch.randn(ROW)
    before = [y.clone() for y in floating_tensors(model(x))]
    report = mk.prune(model, x)
    assert report.silent >= 2 and report.removed == 0 and not report.in_training
    assert reason in report.sites[0].why_not
    assert model.training
    for y, z in zip(floating_tensors(model(x)), before, strict=True):
        assert torch.equal(y, z)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Branches(lambda h: h + (h == 0).sum(1, True)), "an output changes by"),
        (lambda: Branches(lambda h: h * torch.rand(())), "not compared, as it draws random"),
        (
            lambda: Branches(lambda h: h.nothing),
            "not looked at, as the model fails: AttributeError",
        ),
        (lambda: Branches(lambda h: h), ""),
        (lambda: Branches(nn.Dropout(0.5)), ""),
    ],
    ids=["counts units", "random", "fails anyway", "same", "dropout"],
)
def test_what_is_different_in_training_is_said(make: Callable[[], nn.Module], said: str) -> None:
    model, x = make(), torch.randn(ROW)
    state = torch.random.get_rng_state()
    report = mk.prune(model, x)
    assert report.removed >= 2 and model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert said in report.in_training and bool(said) == bool(report.in_training)
    assert ("in training mode: " in str(report)) == bool(said)


def test_units_that_are_silent_by_running_statistics_alone_are_told() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model[1].running_mean[2] = 100.0  # the batch's own mean is near 0
    x = torch.randn(16, 4)
    report = mk.prune(model, x)
    assert report.removed == 1
    assert "an output changes by" in report.in_training
