"""The errors of the gradient from the output that docs/accuracy.md states are the largest: none is
larger, and none is stated that is not nearly reached."""

from __future__ import annotations

import re

import pytest
import torch
from common import ROOT
from torch import Tensor

from mishkit.activation import Activation
from mishkit.backends import cpu
from mishkit.functions import ACTIVATIONS

TURNING = [name for name, a in ACTIVATIONS.items() if a.turn is not None]
ROW = re.compile(r"^\| (\w+) \| (\d\S*) \| (\d\S*) \| (\d\S*) \|$", re.MULTILINE)
PAGE = ROOT / "docs" / "accuracy.md"
STATED = {
    name: [float(figure.replace("−", "-")) for figure in figures]
    for name, *figures in ROW.findall(PAGE.read_text(encoding="utf-8"))
    if name in TURNING and figures[0].endswith("e−5")
}
"""In float32, float16 and bfloat16."""
NEAR = 60_000

pytestmark = pytest.mark.skipif(not cpu.isas(), reason="needs the kernels")


def beside_the_turn(a: Activation) -> Tensor:
    """Every float32 within so many of the minimum."""
    turn = torch.tensor(a.turn_at(*a.defaults), dtype=torch.float32).view(torch.int32)
    return (turn + torch.arange(-NEAR, NEAR + 1, dtype=torch.int32)).view(torch.float32)


def all_of(dtype: torch.dtype) -> Tensor:
    """Every finite number of a 16-bit type."""
    x = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    return x[x.isfinite()]


def largest_error(a: Activation, x: Tensor) -> float:
    """Of all instruction sets, beside the gradient of the input in float64."""
    operators, errors = torch.ops.mishkit, []
    for isa in cpu.isas():
        with cpu.using(isa):
            y, side = getattr(operators, f"{a.name}_packed")(x, *a.defaults)
            decode = getattr(operators, f"{a.name}_backward_packed")
            gradient = decode(torch.ones_like(x), y, side, *a.defaults)
        errors.append((gradient.double() - a.df(x.double(), *a.defaults)).abs().max().item())
    return max(errors)


def test_every_function_with_a_minimum_is_stated() -> None:
    assert list(STATED) == TURNING


@pytest.mark.parametrize("name", TURNING)
def test_the_stated_errors(name: str) -> None:
    a = ACTIVATIONS[name]
    inputs = (beside_the_turn(a), all_of(torch.float16), all_of(torch.bfloat16))
    for x, stated in zip(inputs, STATED[name], strict=True):
        assert 0.8 * stated <= largest_error(a, x) <= 1.02 * stated, x.dtype
