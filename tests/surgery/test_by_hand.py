"""Activations written by hand, recognised by evaluating them, and replaced by `lean` and `swap`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mishkit as mk
from mishkit.surgery.known import identify


def module(forward: Callable[..., Tensor], **attributes: Any) -> nn.Module:
    """A module of a class of its own with this forward."""
    instance = type("ByHand", (nn.Module,), {"forward": forward})()
    for name, value in attributes.items():
        setattr(instance, name, value)
    return instance


class MemoryMish(torch.autograd.Function):
    """As people write it to save memory."""

    factor = 1.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.mul(torch.tanh(F.softplus(x)))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        t = F.softplus(x).tanh()
        return MemoryMish.factor * grad * (t + x * torch.sigmoid(x) * (1 - t * t))


def new_gelu(self: Any, x: Tensor) -> Tensor:
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
    return 0.5 * x * (1.0 + torch.tanh(u))


RECOGNISED: dict[str, tuple[nn.Module, str, dict[str, float]]] = {
    "mish": (module(lambda self, x: x * torch.tanh(F.softplus(x))), "mish", {}),
    "mish by log1p": (module(lambda self, x: x * torch.tanh(x.clamp(max=0) + torch.log1p(
        torch.exp(-x.abs())) - x.clamp(max=0) + x.clamp(min=0))), "mish", {}),
    "mish in float32": (
        module(lambda self, x: (x.float() * torch.tanh(F.softplus(x.float()))).to(x.dtype)),
        "mish",
        {},
    ),
    "a Function": (module(lambda self, x: MemoryMish.apply(x)), "mish", {}),
    "silu": (module(lambda self, x: x * torch.sigmoid(x)), "silu", {}),
    "silu with an option": (module(lambda self, x, extra=None: x.sigmoid().mul(x)), "silu", {}),
    "a swish": (
        module(lambda self, x: x * torch.sigmoid(self.beta * x), beta=1.7),
        "swish",
        {"beta": 1.7},
    ),
    "QuickGELU": (
        module(lambda self, x: x * torch.sigmoid(self.beta * x), beta=1.702),
        "quick_gelu",
        {},
    ),
    "ReLU squared": (module(lambda self, x: torch.square(F.relu(x))), "relu2", {}),
    "elu": (
        module(lambda self, x: torch.where(x > 0, x, torch.expm1(x.clamp(max=0)))),
        "elu",
        {},
    ),
    "NewGELU": (module(new_gelu), "gelu_tanh", {}),
    "gelu": (module(lambda self, x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))), "gelu", {}),
    "hardswish": (module(lambda self, x: x * F.relu6(x + 3) / 6), "hardswish", {}),
}  # fmt: skip
OTHERS: dict[str, nn.Module] = {
    "a gate of halves": module(lambda self, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid()),
    "a gate that keeps the shape": module(lambda self, x: x * torch.sigmoid(x.flip(1))),
    "a gate by the mean": module(lambda self, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True))),
    "a gate of two inputs": module(lambda self, x, gate: x * torch.sigmoid(gate)),
    "a gate of the input before": module(
        lambda self, x: x * torch.sigmoid(torch.roll(x, 1, dims=-1))
    ),
    "clamped far away": module(lambda self, x: (x * torch.sigmoid(x)).clamp(max=1e6)),
    "otherwise in eval mode": module(lambda self, x: x * torch.sigmoid(x) if self.training else x),
    "another gradient": module(lambda self, x: x + (x * torch.sigmoid(x) - x).detach()),
    "in place": module(lambda self, x: x.mul_(torch.sigmoid(x))),
    "random": module(lambda self, x: x * torch.sigmoid(x) * (1 + 1e-3 * torch.rand(()))),
    "raises": module(lambda self, x: x * self.nothing),
    "a torch call by its name": module(lambda self, x: F.silu(x)),
    "identity": module(lambda self, x: x),
    "holds a tensor": module(lambda self, x: x * torch.sigmoid(x), rows=torch.ones(3)),
}


@pytest.mark.parametrize("name", RECOGNISED)
def test_what_is_recognised(name: str) -> None:
    act, function, parameters = RECOGNISED[name]
    known = identify(act)
    assert known is not None and (known.function, known.parameters) == (function, parameters)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not(name: str) -> None:
    assert identify(OTHERS[name]) is None


def test_a_wrong_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryMish, "factor", 1.001)
    assert identify(module(lambda self, x: MemoryMish.apply(x))) is None


def test_a_changed_number_is_seen() -> None:
    act = module(lambda self, x: x * torch.sigmoid(self.beta * x), beta=1.0)
    assert identify(act).function == "silu"  # type: ignore[union-attr]
    act.beta = 3.0
    assert identify(act).parameters == {"beta": 3.0}  # type: ignore[union-attr]


def test_nothing_is_disturbed() -> None:
    calls = []

    def forward(self: Any, x: Tensor) -> Tensor:
        self.count = self.count + 1
        torch.rand(3)
        return x * torch.sigmoid(x)

    act = module(forward, count=0)
    act.register_forward_hook(lambda *_: calls.append(1))
    state = torch.get_rng_state()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert identify(act).function == "silu"  # type: ignore[union-attr]
    assert act.count == 0 and not calls and torch.equal(torch.get_rng_state(), state)


def test_lean_and_swap() -> None:
    x = torch.randn(2, 3, 9, 9)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), module(MishByHand.forward), nn.Conv2d(8, 4, 3))
    expected = net(x)
    report = mk.lean(net, x, recompute=False)
    assert report.changed == ("1",) and report.sites[0].function == "mish"
    assert type(net[1]) is mk.Mish and net[1].save == "output"
    torch.testing.assert_close(net(x), expected)
    mk.unswap(net)
    assert type(net[1]).__name__ == "ByHand"
    assert [(site.name, site.new) for site in mk.swap(net, {"mish": "silu"})] == [("1", "SiLU()")]


class MishByHand(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(x))


def test_a_function_that_saves_memory_by_hand() -> None:
    """The audit names it, and `lean` replaces it."""
    x = torch.randn(2, 3, 9, 9)
    by_hand = module(lambda self, x: MemoryMish.apply(x))
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), by_hand, nn.Conv2d(8, 4, 3))
    (site,) = mk.audit(net, x).sites
    assert site.function == "mish" and site.saving == 2 * 8 * 7 * 7 * 4 - 2 * 8 * 7 * 7 // 8
    assert mk.lean(net, x, recompute=False).changed == ("2",)
