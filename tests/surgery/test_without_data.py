"""Models without data, fake or on the meta device, count as the real ones do, to the byte."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from common import Case, every_function
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import mishkit as mk


class Attention(nn.Module):
    """A block of a transformer behind an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(32, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.embedding(x))


def convolutions() -> nn.Module:
    """Every norm, several activations, and dropout, whose mask is one of floats on a CPU."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Mish()),
        *(nn.Conv2d(16, 8, 3), nn.GroupNorm(2, 8), mk.APTx(), nn.Dropout(0.2)),
        *(nn.Conv2d(8, 8, 3), nn.LayerNorm(20), nn.GELU(), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(8 * 10 * 10, 10)),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (convolutions, (64, 3, 24, 24)),
    "attention": (Attention, (16, 64, 32)),
}
"""With a mask, a norm and an output large enough to be dropped."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way to make a model and its input, and where to run it."""

    mode: Callable[[], AbstractContextManager[Any]]
    device: str


REAL = Kind(nullcontext, "cpu")
KINDS = {"fake": Kind(FakeTensorMode, "cpu"), "meta": Kind(nullcontext, "meta")}
every_model = pytest.mark.parametrize("name", MODELS)
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def kept(name: str, kind: Kind, within: Callable[[], Any], autocast: bool) -> int:
    """The bytes kept by a forward pass that is followed by a backward pass."""
    build, shape = MODELS[name]
    with kind.mode(), torch.device(kind.device):
        model, x = build(), torch.randn(shape)
        counted = mk.KeptBytes(exclude=[*model.parameters(), *model.buffers(), x])
        with counted, within(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = model(x)
        y.float().sum().backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    return counted.total


@every_model
@every_kind
@pytest.mark.parametrize("within", [nullcontext, mk.recompute], ids=["plain", "recompute"])
def test_they_keep_what_real_ones_keep(name: str, kind: Kind, within: Callable[[], Any]) -> None:
    real = kept(name, REAL, within, autocast=False)
    assert kept(name, kind, within, autocast=False) == real > 0


@every_model
@pytest.mark.parametrize("within", [nullcontext, mk.recompute], ids=["plain", "recompute"])
def test_fake_tensors_know_autocast(name: str, within: Callable[[], Any]) -> None:
    """Torch says of a norm's statistics that they have 16 bits here, where its kernels make 32."""
    real = kept(name, REAL, within, autocast=True)
    assert 0.98 * real <= kept(name, KINDS["fake"], within, autocast=True) <= real


@every_function
@every_kind
@pytest.mark.parametrize("save", ["input", "output"])
def test_our_functions(case: Case, kind: Kind, save: str) -> None:
    counts = []
    for place in (REAL, kind):
        with place.mode(), torch.device(place.device):
            x = torch.randn(1000, requires_grad=True)
            with mk.KeptBytes() as counted:
                y = getattr(mk, case.a.name)(x, *case.parameters, save=save)
            y.sum().backward()
            assert x.grad is not None
        counts.append(counted.total)
    assert counts[0] == counts[1] > 0


WAYS: dict[str, Callable[..., mk.Report]] = {
    "audit": mk.audit,
    "lean": mk.lean,
    "outputs": lambda model, x: mk.lean(model, x, recompute=False),
    "in place": lambda model, x: mk.lean(model, x, inplace=True),
}


def report(name: str, kind: Kind, way: Callable[..., mk.Report]) -> tuple[nn.Module, mk.Report]:
    """A model after it was audited or made lean, and the report."""
    build, shape = MODELS[name]
    with kind.mode(), torch.device(kind.device):
        model = build()
        return model, way(model, torch.randn(shape))


@every_model
@every_kind
@pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
def test_reports_and_changes_are_the_same(
    name: str, kind: Kind, way: Callable[..., mk.Report]
) -> None:
    (real, want), (model, got) = report(name, REAL, way), report(name, kind, way)
    assert {**vars(got), "advised": None} == {**vars(want), "advised": None}
    assert [type(m) for m in model.modules()] == [type(m) for m in real.modules()]


def test_a_kernel_that_meta_tensors_lack() -> None:
    """In evaluation mode a CPU computes attention in one kernel, and so do its fake tensors."""
    build, shape = MODELS["attention"]
    counts = {}
    for label, kind in {"real": REAL, **KINDS}.items():
        with kind.mode(), torch.device(kind.device):
            counts[label] = mk.audit(build().eval(), torch.randn(shape)).kept
    assert counts["fake"] == counts["real"] < counts["meta"]


def test_lean_then_filled() -> None:
    """A model that was made lean on the meta device and then given data is lean."""
    model, predicted = report("convolutions", KINDS["meta"], mk.lean)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(1)
    x = torch.randn(MODELS["convolutions"][1])
    given = [*model.parameters(), *model.buffers(), x]
    with mk.KeptBytes(exclude=given) as counted:
        model(x)
    assert counted.total == predicted.after_lean


@every_kind
def test_a_budget_needs_times(kind: Kind) -> None:
    with pytest.raises(ValueError, match="a budget needs times"):
        report("convolutions", kind, lambda model, x: mk.lean(model, x, budget=0.5))
