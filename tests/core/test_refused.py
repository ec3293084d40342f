"""What operators refuse: with one line, before memory is touched, and with everything freed."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.profiler import profile

import mishkit.ops.blend as blend
from mishkit.backends import cpu
from mishkit.functions import ACTIVATIONS
from mishkit.ops.functions import schemas

SIZES = (3, 5)


@dataclass(frozen=True)
class Operator:
    """An operator with arguments that it takes."""

    name: str
    make: Callable[[], list[Tensor]]
    """The tensors, which come first,"""
    numbers: tuple[Any, ...] = ()
    """and the numbers after them."""
    leading: int = 0
    """The tensor that decides dtype and layout."""
    ignored: int | None = None
    """One that is not looked at."""

    def __call__(self, *tensors: Tensor) -> Any:
        return getattr(torch.ops.mishkit, self.name)(*tensors, *self.numbers)


def operators() -> Iterator[Operator]:
    """All of them."""

    def x() -> Tensor:
        return torch.randn(SIZES)

    def side(turns: bool) -> Tensor:
        return torch.zeros((x().numel() + 7) // 8 if turns else 0, dtype=torch.uint8)

    for a in ACTIVATIONS.values():
        rows = len(a.parameters)
        makers: dict[str, tuple[Callable[[], list[Tensor]], int]] = {
            "": (lambda: [x()], 0),
            "_out": (lambda: [x(), x()], 0),
            "_packed": (lambda: [x()], 0),
            "_packed_out": (lambda: [x(), x()], 0),
            "_backward": (lambda: [x(), x()], 1),
            "_double_backward": (lambda: [x(), x(), x()], 2),
            "_backward_packed": (lambda turns=a.turn is not None: [x(), x(), side(turns)], 1),
            "_trained": (lambda rows=rows: [x(), torch.ones(rows, 5)], 0),
            "_trained_backward": (lambda rows=rows: [x(), x(), torch.ones(rows, 5)], 1),
        }
        for ending in schemas(a):
            make, leading = makers[ending]
            numbers = () if "trained" in ending else a.defaults
            ignored = 2 if ending == "_backward_packed" and a.turn is None else None
            yield Operator(a.name + ending, make, numbers, leading, ignored)
    both = (*blend.function("mish"), *blend.function("h_mish"), 0.5)
    yield Operator("blend", lambda: [x()], both)
    yield Operator("blend_backward", lambda: [x(), x()], both, 1)

    def parameters() -> list[Tensor]:
        return [torch.ones(2, 5) for _ in range(3)]

    yield Operator("aptx_layer", lambda: [x(), *parameters(), torch.ones(2)])
    yield Operator(
        "aptx_layer_backward", lambda: [torch.ones(3, 2), x(), *parameters()], (True,), 1
    )


FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "integer": lambda t: t.to(torch.int64),
    "complex": lambda t: t.to(torch.complex64),
    "another dtype": lambda t: t.double(),
    "a row more": lambda t: torch.cat([t, t[:1]]) if t.numel() else t.new_ones(1),
    "a dimension more": lambda t: t.unsqueeze(0).repeat(2, *(1,) * t.dim()),
    "on another device": lambda t: t.to("meta"),
}


@dataclass(frozen=True)
class Refused:
    """A call with one wrong tensor."""

    operator: Operator
    place: int
    fault: str

    def __str__(self) -> str:
        return f"{self.operator.name}: {self.fault}, tensor {self.place}"

    def tensors(self) -> list[Tensor]:
        """All that it is called with."""
        given = self.operator.make()
        given[self.place] = FAULTS[self.fault](given[self.place])
        return given


def refused() -> list[Refused]:
    """Of all operators, tensors and faults, those that go wrong."""
    calls = []
    for operator in operators():
        count = len(operator.make())
        for place, fault in itertools.product(range(count), FAULTS):
            # Alone, a tensor may have any shape, any of four dtypes, and any device.
            decides = place == operator.leading and fault not in ("integer", "complex")
            # Samples, of which there may be any number.
            more = fault == "a row more" and operator.name.endswith(("_trained", "aptx_layer"))
            if place == operator.ignored or (decides and (count == 1 or more)):
                continue
            calls.append(Refused(operator, place, fault))
    return calls


@dataclass(frozen=True)
class Special:
    """A call with tensors that are wrong together, or with a wrong number."""

    operator: Operator
    tensors: Callable[[], list[Tensor]]

    def __str__(self) -> str:
        return self.operator.name


def overlapping() -> list[Tensor]:
    """An input and an output that share a part of their memory."""
    both = torch.randn(100)
    return [both[:90], both[10:]]


def special() -> Iterator[Special]:
    """What no one tensor is to blame for."""
    for a in ACTIVATIONS.values():
        for ending in ("_out", "_packed_out"):
            operator = Operator(a.name + ending, list, a.defaults)
            yield Special(operator, lambda: [torch.randn(9), torch.empty(1).expand(9)])
            yield Special(operator, overlapping)
    one, half = blend.function("mish"), 0.5
    nobody = (len(ACTIVATIONS), *one[1:])
    for wrong in ((*nobody, *one, half), (*one, *nobody, half), (*one, *one, 1.5)):
        yield Special(Operator("blend", list, wrong), lambda: [torch.randn(9)])
    yield Special(  # a dense copy of the input would take 64 TiB
        Operator("mish_backward", list),
        lambda: [torch.ones(4), torch.ones(1).expand(1 << 22, 1 << 22)],
    )


REFUSED = [*refused(), *special()]


def outcome(call: Refused | Special) -> tuple[list[Tensor], str]:
    """What it was called with, and what it said."""
    given = call.tensors()
    with pytest.raises((RuntimeError, ValueError)) as caught:
        call.operator(*given)
    return given, str(caught.value)


@pytest.mark.skipif(not cpu.isas(), reason="needs the kernels")
def test_what_is_refused_is_freed() -> None:
    """Not one byte more is allocated after some hundreds of kinds of refused calls."""
    assert len(REFUSED) >= 200
    kinds = [call for call in REFUSED for _ in range(2)]
    outcome(kinds[0])
    gc.collect()
    with profile(profile_memory=True) as seen:
        for call in kinds:
            given, _ = outcome(call)
            del given
        gc.collect()
    changes = [event.self_cpu_memory_usage for event in seen.function_events]
    # Less where something that an earlier test left is freed meanwhile.
    assert any(changes) and sum(changes) <= 0


@pytest.mark.skipif(not cpu.isas(), reason="needs the kernels")
def test_what_is_refused_is_refused_in_a_line() -> None:
    for call in REFUSED:
        _, said = outcome(call)
        first = said.splitlines()[0]
        assert first.startswith("mishkit") and len(first) < 300, (str(call), said)


@pytest.mark.parametrize("operator", list(operators()), ids=lambda operator: operator.name)
def test_what_is_right_is_not_refused(operator: Operator) -> None:
    """Else the tests above would show nothing."""
    operator(*operator.make())
    operator(*(tensor.to("meta") for tensor in operator.make()))


@pytest.mark.parametrize("fake", [True, False])
def test_devices_are_compared_before_anything_is_computed(fake: bool) -> None:
    """For meta tensors, and for fake ones, from which compilers learn shapes."""
    with FakeTensorMode() if fake else torch.no_grad():
        for operator in operators():
            given = operator.make()
            for place in range(len(given)) if len(given) > 1 else ():
                mixed = [t.to("meta") if i == place else t for i, t in enumerate(given)]
                with pytest.raises(RuntimeError, match="different devices"):
                    operator(*mixed)


@pytest.mark.parametrize("sizes", [(0,), (0, 3), (3, 0), (2, 0, 4), (0, 0)])
def test_nothing_to_do(sizes: tuple[int, ...]) -> None:
    """Empty tensors have empty results, and gradients of parameters that are 0."""
    x = torch.empty(sizes)
    for columns in {1, *sizes[1:2]}:
        parameters = torch.ones(1, columns)
        if columns == 0:
            with pytest.raises(RuntimeError, match="rows of one number"):
                torch.ops.mishkit.swish_trained(x, parameters)
            continue
        assert torch.ops.mishkit.swish_trained(x, parameters).shape == sizes
        of_x, of_parameters = torch.ops.mishkit.swish_trained_backward(x, x, parameters)
        assert of_x.shape == sizes and not of_parameters.any()


@pytest.mark.parametrize(("batch", "width", "out"), list(itertools.product((0, 2), (0, 3), (0, 4))))
def test_a_layer_with_nothing_to_do(batch: int, width: int, out: int) -> None:
    """Without inputs the outputs are δ; all gradients are 0."""
    if batch and width and out:
        return
    x, weights, delta = torch.ones(batch, width), torch.ones(out, width), torch.arange(out) + 0.5
    y = torch.ops.mishkit.aptx_layer(x, weights, weights, weights, delta)
    assert torch.equal(y, delta.expand(batch, out))
    gradients = torch.ops.mishkit.aptx_layer_backward(
        torch.ones(batch, out), x, weights, weights, weights, True
    )
    assert [g.shape for g in gradients] == [x.shape, *[weights.shape] * 3]
    assert not any(g.any() for g in gradients)
