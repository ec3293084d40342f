"""Surgery on random modules: whatever is not meant to change does not.

MISHKIT_EXAMPLES=2000 tries as many models; the ordinary run tries few.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_modules import Drawn, generators, models, observe, seed, state_of
from torch import Tensor, nn

import mishkit as mk

EXAMPLES = int(os.environ.get("MISHKIT_EXAMPLES", "40"))
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="MISHKIT_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

OUTPUT = {torch.float64: 1e-11, torch.float32: 2e-4}
"""Relative error of outputs, which our kernels round otherwise than torch's."""
GRADIENT = {torch.float64: 1e-4, torch.float32: 1e-2}
"""Relative error of gradients from outputs."""


def reference(drawn: Drawn, train: bool) -> dict[str, Tensor]:
    """What torch itself does; models that torch refuses are passed over."""
    model = drawn.build()
    try:
        return observe(model, drawn, train=train)
    except RuntimeError:
        assume(False)
        raise


def same(observed: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Bit by bit."""
    assert observed.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(observed[name], value), name


def close(observed: dict[str, Tensor], wanted: dict[str, Tensor], dtype: torch.dtype) -> None:
    """To rounding, gradients to the stated error."""
    assert observed.keys() == wanted.keys()
    for name, value in wanted.items():
        # Tensor hooks and backward hooks hold gradients.
        is_gradient = "gradient" in name or "after backward" in name
        relative = (GRADIENT if is_gradient else OUTPUT)[dtype]
        error = torch.linalg.vector_norm((observed[name] - value).double())
        size = torch.linalg.vector_norm(value.double())
        assert error <= relative * (size + 1e-2), (name, float(error), float(size))


def untouched(model: nn.Module, change: Callable[[], Any], *, state: bool) -> Any:
    """What the change returns, after a look at everything that it must leave."""
    seed(2)
    names, before = [n for n, _ in model.named_modules()], (generators(), state_of(model))
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    result = change()
    assert generators() == before[0], "random numbers"
    assert [n for n, _ in model.named_modules()] == names
    assert model.state_dict().keys() == weights.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    if state:
        assert state_of(model) == before[1]
    return result


@many
@given(drawn=models(), train=st.booleans())
def test_audit_changes_nothing(drawn: Drawn, train: bool) -> None:
    wanted, model = reference(drawn, train), drawn.build().train(train)
    x = drawn.input()
    report = untouched(model, lambda: mk.audit(model, x), state=True)
    same(observe(model, drawn, train=train), wanted)
    assert report.lean <= report.kept


@many
@given(drawn=models(), train=st.booleans(), audited=st.booleans(), inplace=st.booleans())
def test_lean_changes_gradients_alone(
    drawn: Drawn, train: bool, audited: bool, inplace: bool
) -> None:
    """Whatever mode it was audited in."""
    wanted, model = reference(drawn, train), drawn.build().train(audited)
    x = drawn.input()
    untouched(model, lambda: mk.lean(model, x, inplace=inplace, recompute=False), state=False)
    close(observe(model, drawn, train=train), wanted, drawn.dtype)
    back = drawn.build()
    mk.lean(back.train(audited), x, inplace=inplace, recompute=False)
    mk.unswap(back)
    assert state_of(back) == state_of(drawn.build().train(audited))
    same(observe(back, drawn, train=train), wanted)


@many
@given(drawn=models(), train=st.booleans())
def test_lean_functional_changes_gradients_alone(drawn: Drawn, train: bool) -> None:
    wanted, model = reference(drawn, train), drawn.build().train(train)
    report = mk.audit(model, drawn.input())
    with mk.lean_functional(report):
        close(observe(model, drawn, train=train), wanted, drawn.dtype)
    same(observe(drawn.build(), drawn, train=train), wanted)


@many
@given(drawn=models(), train=st.booleans(), there=st.sampled_from(("itself", "mish", "relu")))
def test_swap_and_back(drawn: Drawn, train: bool, there: str) -> None:
    wanted, model = reference(drawn, train), drawn.build().train(train)
    rules = {name: name if there == "itself" else there for name in mk.names()}
    untouched(model, lambda: mk.swap(model, rules), state=False)
    if there == "itself":
        close(observe(model, drawn, train=train), wanted, drawn.dtype)
        model = drawn.build().train(train)
        mk.swap(model, rules)
    untouched(model, lambda: mk.unswap(model), state=False)
    assert state_of(model) == state_of(drawn.build().train(train))
    same(observe(model, drawn, train=train), wanted)


def test_the_models_are_models() -> None:
    """The checks above would pass over everything if torch refused it."""
    drawn = Drawn((("activation", "silu"), ("hold", "hook")), True, False, torch.float32, 0)
    observed = observe(drawn.build(), drawn, train=True)
    assert "0 held steps.1" in observed and "gradient first.weight" in observed
    with pytest.raises(AssertionError):
        close({**observed, "0 output": observed["0 output"] + 1}, observed, torch.float32)
