"""Within `torch.utils.checkpoint`, reentrant or not, what is kept is left alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import mishkit as mk
from mishkit._checkpoint import in_checkpoint

both_kinds = pytest.mark.parametrize("reentrant", [False, True], ids=["hooks", "reentrant"])


def _rows() -> Tensor:
    return torch.randn(64, 32, requires_grad=True)


def _hidden() -> AbstractContextManager[object]:
    """Other hooks on saved tensors, which hide those outside."""
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)


@both_kinds
@pytest.mark.parametrize("within", [nullcontext, _hidden], ids=["plain", "hidden"])
def test_it_is_known_in_the_forward_pass_and_again_in_backward(
    reentrant: bool, within: Callable[[], AbstractContextManager[object]]
) -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        with within():
            seen.append(in_checkpoint())
        return F.silu(x).sin()

    x = _rows()
    y = checkpoint(function, x, use_reentrant=reentrant)
    assert not in_checkpoint()
    y.sum().backward()
    assert seen == [True, True] and not in_checkpoint()
    function(x)
    assert seen == [True, True, False]


@both_kinds
def test_it_is_known_in_every_part_of_a_sequence(reentrant: bool) -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(in_checkpoint())
            return x.sin()

    seen: list[bool] = []
    model = nn.Sequential(*(Asks() for _ in range(4)))
    checkpoint_sequential(model, 2, _rows(), use_reentrant=reentrant).sum().backward()
    # All but the last two, of the last part, run again.
    assert seen == [True] * 6


@both_kinds
@pytest.mark.parametrize("context", [mk.recompute, mk.lean_functional], ids=["recompute", "lean"])
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "around"])
def test_gradients_are_those_without(
    context: Callable[[], AbstractContextManager[None]], reentrant: bool, inside: bool
) -> None:
    linear, norm, x = nn.Linear(32, 32), nn.BatchNorm1d(32), _rows()

    def plain(x: Tensor) -> Tensor:
        return F.gelu(norm(F.silu(linear(x)))).sin()

    def function(x: Tensor) -> Tensor:
        with context() if inside else nullcontext():
            return plain(x)

    def gradients(y: Tensor) -> list[Tensor]:
        linear.weight.grad = x.grad = None
        y.sum().backward()
        return [x.grad, linear.weight.grad]

    want = gradients(plain(x))
    with nullcontext() if inside else context():
        y = checkpoint(function, x, use_reentrant=reentrant)
    for a, b in zip(gradients(y), want, strict=True):
        assert torch.equal(a, b)


@both_kinds
def test_recompute_hooks_nothing_in_it(reentrant: bool) -> None:
    def top() -> object:
        return torch._C._autograd._top_saved_tensors_default_hooks(True)

    def function(x: Tensor) -> Tensor:
        before = top()
        with mk.recompute():
            # Each look makes another tuple of the same hooks.
            assert (before is None) == (top() is None)
            assert before is None or before[0] is top()[0]
            return x.sin()

    checkpoint(function, _rows(), use_reentrant=reentrant).sum().backward()
