"""`lean(inplace=True)` writes over nothing that anybody but autograd can miss, in any mode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.checkpoint import checkpoint

import mishkit as mk

Forward = Callable[["Holder", Tensor], Any]


class Holder(nn.Module):
    """A layer, an activation and a layer, and whatever else a forward does with them."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.act, self.outer = nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8)
        self.norm, self.drop, self.same = nn.LayerNorm(8), nn.Dropout(0.5), nn.Identity()
        self.conv, self.kept = nn.Conv2d(2, 2, 1), []
        self.wanted = forward

    def forward(self, x: Tensor) -> Any:
        return self.wanted(self, x)


def rows() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(4, 8)


def plain(self: Holder, x: Tensor) -> Tensor:
    return self.outer(self.act(self.inner(x)))


def in_attribute(self: Holder, x: Tensor) -> Tensor:
    self.seen = self.inner(x)
    return self.outer(self.act(self.seen))


def in_list(self: Holder, x: Tensor) -> Tensor:
    h = self.inner(x)
    self.kept.append(h.detach())
    return self.outer(self.act(h))


def retained(self: Holder, x: Tensor) -> Tensor:
    h = self.inner(x)
    if h.requires_grad:
        h.retain_grad()
    return self.outer(self.act(h))


def tensor_hook(self: Holder, x: Tensor) -> Tensor:
    h = self.inner(x)
    y = self.act(h)
    if h.requires_grad:
        h.register_hook(self.kept.append)
    return self.outer(y)


def read_before(self: Holder, x: Tensor) -> Tensor:
    h = self.inner(x)
    same = h.to(torch.float64) if h.dtype == torch.float32 else h  # no copy in another dtype
    return self.outer(self.act(h)) + same.to(h.dtype)


def read_after(self: Holder, x: Tensor) -> Tensor:
    h = self.inner(x)
    return self.outer(self.act(h)) + h


def read_in_training(self: Holder, x: Tensor) -> Tensor:
    h = self.inner(x)
    y = self.outer(self.act(h))
    return y + h if self.training else y


def read_in_evaluation(self: Holder, x: Tensor) -> Tensor:
    h = self.inner(x)
    y = self.outer(self.act(h))
    return y if self.training else y + h


def returned(self: Holder, x: Tensor) -> Any:
    h = self.inner(x)
    return self.outer(self.act(h)), h


def dropout_between(self: Holder, x: Tensor) -> Tensor:
    h = self.norm(x)
    return h + self.outer(self.act(self.drop(h)))


def identity_between(self: Holder, x: Tensor) -> Tensor:
    h = self.inner(x)
    return h + self.outer(self.act(self.same(h)))


def dropout_beside(self: Holder, x: Tensor) -> Tensor:
    h = self.norm(x)
    other = self.drop(h)
    return other + self.outer(self.act(h))


def contiguous_between(self: Holder, x: Tensor) -> Tensor:
    h = self.conv(x.reshape(1, 2, 4, 4).to(memory_format=torch.channels_last))
    y = self.act(h.contiguous())
    return (h + y).flatten()


def slice_of_it(self: Holder, x: Tensor) -> Tensor:
    h = self.inner(x)
    return self.outer(F.pad(self.act(h[:, :4]), (0, 4))) + h


def from_outside(self: Holder, x: Tensor) -> Tensor:
    return self.outer(self.act(x))


def through_checkpoint(self: Holder, x: Tensor) -> Tensor:
    return checkpoint(lambda h: self.outer(self.act(h)), self.inner(x), use_reentrant=False)


def twice(self: Holder, x: Tensor) -> Tensor:
    h = self.inner(x)
    return self.outer(self.act(h)) + self.act(h)


NOT_ALONE = [
    in_attribute, in_list, retained, tensor_hook, read_before, read_after, read_in_training,
    read_in_evaluation, returned, dropout_between, identity_between, dropout_beside,
    contiguous_between, slice_of_it, from_outside, through_checkpoint, twice,
]  # fmt: skip


def run(model: nn.Module, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and all gradients with what is retained or seen by hooks."""
    torch.manual_seed(2)
    model.zero_grad()
    output = model(x)
    outputs = [output] if isinstance(output, Tensor) else list(output)
    sum(y.square().mean() for y in outputs).backward()
    return [y.detach().clone() for y in outputs], [
        p.grad.clone() for p in model.parameters() if p.grad is not None
    ]


def same(ours: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-5) -> None:
    assert len(ours) == len(wanted)
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=tolerance)


@pytest.mark.parametrize("forward", [plain, *NOT_ALONE], ids=lambda forward: forward.__name__)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_outputs_stay_in_every_mode(forward: Forward, inplace: bool, training: bool) -> None:
    model, x = Holder(forward).train(training), rows()
    model.act = nn.GELU()
    before = copy.deepcopy(model)
    mk.lean(model, x, inplace=inplace, recompute=False)
    assert getattr(model.act, "inplace", False) == (inplace and forward is plain)
    assert torch.equal(x, rows())
    for mode in (True, False):
        for dtype in (torch.float32, torch.float64):
            for m in (model, before):
                m.train(mode).to(dtype)
            outputs, gradients = run(model, x.to(dtype))
            wanted, theirs = run(before, x.to(dtype))
            same(outputs, wanted)
            same(gradients, theirs)
            for a, b in zip(model.kept, before.kept, strict=True):
                torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        ("inner", "register_forward_hook"),
        ("inner", "register_forward_pre_hook"),
        ("inner", "register_full_backward_hook"),
        ("inner", "register_full_backward_pre_hook"),
        ("act", "register_forward_hook"),
        ("act", "register_forward_pre_hook"),
        ("act", "register_full_backward_hook"),
        ("act", "register_full_backward_pre_hook"),
    ],
)
def test_hooks_of_any_kind_count(module: str, kind: str) -> None:
    model = Holder(plain)
    getattr(getattr(model, module), kind)(lambda *args: None)
    mk.lean(model, rows(), inplace=True)
    assert isinstance(model.act, mk.SiLU) and not model.act.inplace
    model(rows().requires_grad_()).sum().backward()


def test_hooks_on_all_modules_count() -> None:
    model = Holder(plain)
    handle = register_module_forward_hook(lambda *args: None)
    try:
        mk.lean(model, rows(), inplace=True)
    finally:
        handle.remove()
    assert isinstance(model.act, mk.SiLU) and not model.act.inplace


@pytest.fixture(params=["module", "attribute"])
def block(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer, self.act = nn.Linear(8, 8), nn.Linear(8, 8), F.silu

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(self.act(self.inner(x)))

    yield Holder(plain) if request.param == "module" else Called()


def test_modules_and_attributes_may_work_in_place(block: nn.Module) -> None:
    before = copy.deepcopy(block)
    report = mk.lean(block, rows(), inplace=True)
    assert report.sites[0].inplace and "output, in place" in str(report)
    # A batch of another shape gives the activation a view of what the layer has made.
    for x in (rows(), rows().reshape(2, 2, 8)):
        for ours, wanted in zip(run(block, x), run(before, x), strict=True):
            same(ours, wanted)


def test_what_works_in_place_goes_on_to() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.SiLU(inplace=True), nn.Linear(8, 8))
    mk.lean(model, rows(), recompute=False)
    assert model[1].inplace


def test_a_model_that_runs_in_one_mode_alone_does_not_work_in_place() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 8)).eval()
    mk.lean(model, rows()[:1], inplace=True)  # batch norm can't train on one row
    assert isinstance(model[2], mk.SiLU) and not model[2].inplace and not model.training


@pytest.mark.parametrize("inplace", [False, True])
def test_checkpoint_around_a_block_that_begins_with_the_activation(inplace: bool) -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.SiLU(), nn.Linear(8, 8)))

    model, before = build(), build()
    mk.lean(model, rows(), inplace=inplace, recompute=False)
    assert isinstance(model[1][0], mk.SiLU) and not model[1][0].inplace
    for reentrant in (False, True):
        gradients = []
        for m in (model, before):
            m.zero_grad()
            y = checkpoint(m[1], m[0](rows()), use_reentrant=reentrant)
            y.square().mean().backward()
            gradients.append([p.grad.clone() for p in m.parameters()])
        same(*gradients)
