"""An audit leaves the model, what it is given and all generators of random numbers as they were."""

from __future__ import annotations

import copy
import random
import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mishkit as mk


class Disturbing(nn.Module):
    """Does one thing to itself, to its input or to a generator, whenever it runs."""

    def __init__(self, disturb: Any) -> None:
        super().__init__()
        self.inner, self.act, self.outer = nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8)
        self.embedding = nn.Embedding(4, 8, max_norm=0.1)
        self.register_buffer("n", torch.zeros(()))
        self.register_buffer("none", None)
        self.tensor, self.plain, self.listed = torch.zeros(3), 0, [torch.ones(2)]
        self.named, self.last, self.few = {"a": torch.ones(2)}, deque([1]), {1}
        self.cache = SimpleNamespace(keys=torch.ones(2), layers=[])
        self.hidden = [nn.Linear(2, 2)]
        self.array, self.generator = np.zeros(3), torch.Generator()
        self.drawn, self.bits = random.Random(3), np.random.default_rng(3)
        self.disturb = disturb

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        self.disturb(self, x, h)
        return self.outer(self.act(h))


def rebind_parameter(m: Disturbing, x: Tensor, h: Tensor) -> None:
    m.outer.bias = nn.Parameter(torch.ones(8))


def renormalise(m: Disturbing, x: Tensor, h: Tensor) -> None:
    m.embedding(torch.tensor([0, 1]))


def through_data(m: Disturbing, x: Tensor, h: Tensor) -> None:
    m.outer.weight.data /= 2
    m.inner.bias.data = torch.ones(8)


def through_numpy(m: Disturbing, x: Tensor, h: Tensor) -> None:
    m.n.numpy()[...] = 3
    m.array += 1


def flags(m: Disturbing, x: Tensor, h: Tensor) -> None:
    m.inner.training = not m.inner.training
    m.embedding.weight.requires_grad_(False)
    m.outer.weight.grad = torch.ones(8, 8)


def hook(m: Disturbing, x: Tensor, h: Tensor) -> None:
    m.outer.register_forward_hook(lambda *args: None)


def caches(m: Disturbing, x: Tensor, h: Tensor) -> None:
    m.cache.layers.append(h)
    m.cache.keys = torch.cat([m.cache.keys, m.cache.keys])
    m.cache.new = 1


def containers(m: Disturbing, x: Tensor, h: Tensor) -> None:
    m.listed.append(h)
    m.listed[0].mul_(2)
    m.named["b"] = h
    m.last.append(2)
    m.few.add(2)


def draw(m: Disturbing, x: Tensor, h: Tensor) -> None:
    torch.rand(1), random.random(), np.random.rand()
    torch.rand(1, generator=m.generator), m.drawn.random(), m.bits.random()


DISTURB = {
    "a buffer that is rebound": lambda m, x, h: setattr(m, "n", m.n + 1),
    "a buffer with a gradient": lambda m, x, h: setattr(m, "n", h.mean()),
    "a buffer written with a gradient": lambda m, x, h: m.n.copy_(h.mean()),
    "a buffer that was none": lambda m, x, h: setattr(m, "none", torch.ones(1)),
    "a parameter that is rebound": rebind_parameter,
    "a parameter that is renormalised": renormalise,
    "a parameter through data": through_data,
    "a buffer through numpy": through_numpy,
    "flags and gradients": flags,
    "an attribute": lambda m, x, h: setattr(m, "plain", m.plain + 1),
    "a tensor as an attribute": lambda m, x, h: m.tensor.add_(1),
    "a new attribute": lambda m, x, h: setattr(m, "seen", h),
    "what lists and mappings hold": containers,
    "a cache": caches,
    "a module in a list": lambda m, x, h: m.hidden[0].weight.data.zero_(),
    "a hook": hook,
    "the input": lambda m, x, h: x.add_(1),
    "generators": draw,
}


def state(value: Any) -> Any:
    """All that a model holds, as plain values."""
    if isinstance(value, Tensor):
        grad = state(value.grad) if value.is_leaf else None
        return (value.tolist(), value.dtype, value.requires_grad, value.is_leaf, id(value), grad)
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, dict):
        return {name: state(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [state(item) for item in value]
    if isinstance(value, (nn.Module, SimpleNamespace)):
        return type(value), state(vars(value))
    return copy.copy(value) if isinstance(value, set) else value


def generators() -> Any:
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


@pytest.mark.parametrize("change", DISTURB)
@pytest.mark.parametrize("training", [True, False])
def test_nothing_changes(change: str, training: bool) -> None:
    model, x = Disturbing(DISTURB[change]).train(training), torch.randn(3, 8)
    before, given, drawn = state(model), x.clone(), generators()
    report = mk.audit(model, x)
    assert state(model) == before and generators() == drawn and torch.equal(x, given)
    assert [site.advice for site in report.sites] == ["output"]
    # What came first does not matter: after a pass of its own the state is another.
    model(x.clone())
    before, drawn = state(model), generators()
    mk.audit(model, x)
    assert state(model) == before and generators() == drawn and torch.equal(x, given)


def test_what_a_hook_holds_stays_as_it_was() -> None:
    seen: list[Tensor] = []
    count = 0

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        nonlocal count
        count += 1
        seen.append(output)

    model = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 8))
    model[0].register_forward_hook(note)
    mk.audit(model, torch.randn(2, 8))
    assert not seen and count == 0
    model(torch.randn(2, 8))
    assert len(seen) == count == 1


def test_an_error_puts_back_too() -> None:
    def fail(m: Disturbing, x: Tensor, h: Tensor) -> None:
        m.n = m.n + 1
        raise RuntimeError("of the model")

    model = Disturbing(fail)
    before = state(model)
    with pytest.raises(RuntimeError, match="of the model"):
        mk.audit(model, torch.randn(2, 8))
    assert state(model) == before


@pytest.mark.parametrize("inplace", [True, False])
def test_models_that_cannot_be_copied_are_no_reason_to_fail(inplace: bool) -> None:
    def hold(m: Disturbing, x: Tensor, h: Tensor) -> None:
        m.n, m.seen = h.mean(), (h, threading.Lock())

    model, x = Disturbing(hold), torch.randn(2, 8)
    model(x)
    with pytest.raises((RuntimeError, TypeError)):
        copy.deepcopy(model)
    mk.lean(model, x, inplace=inplace, recompute=False)
    assert isinstance(model.act, mk.SiLU) and not model.act.inplace  # the model holds its input


def test_lazy_parameters_are_refused_as_a_run_would_make_them() -> None:
    model = nn.Sequential(nn.LazyLinear(8), nn.SiLU(), nn.Linear(8, 8))
    with pytest.raises(ValueError, match="parameters that are not initialized yet; call it once"):
        mk.audit(model, torch.randn(2, 8))
    assert isinstance(model[0], nn.LazyLinear)


@pytest.mark.parametrize("held", ["module", "attribute", "call"])
def test_another_thread_is_not_seen(held: str) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)
            if held == "module":
                self.act = nn.SiLU()
            elif held == "attribute":
                self.act = nn.functional.silu
            self.busy = False

        def forward(self, x: Tensor) -> Tensor:
            if not self.busy:  # in the middle of the audit
                self.busy = True
                other = threading.Thread(target=lambda: model(torch.randn(50, 8)))
                other.start()
                other.join()
            h = self.inner(x)
            return self.outer(nn.functional.silu(h) if held == "call" else self.act(h))

    model = Block()
    (site,) = mk.audit(model, torch.randn(4, 8)).sites
    assert (site.calls, site.shape, site.kept) == (1, (4, 8), 4 * 8 * 4)
