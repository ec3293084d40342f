"""Fixtures: what computes the operators, and numbers that come out the same each time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from common import KERNELS, PLAIN, Engine

from mishkit.backends import cpu

TORCHS_OWN = [
    r"`torch\.jit\.:DeprecationWarning",
    ".*treespec:FutureWarning",
    ".*autograd.function.Function.* should not be instantiated:DeprecationWarning",
]
"""What torch says to itself in its compiler, its exporter and its forward mode."""


def pytest_configure(config: pytest.Config) -> None:
    for warning in TORCHS_OWN:
        config.addinivalue_line("filterwarnings", f"ignore:{warning}")


def _using(engine: Engine) -> Iterator[Engine]:
    if engine is PLAIN:
        yield engine
        return
    with cpu.using(engine.name):
        yield engine


@pytest.fixture(params=[*KERNELS, PLAIN], ids=str)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Every instruction set of this machine, then plain torch."""
    yield from _using(request.param)


@pytest.fixture(params=KERNELS, ids=str)
def kernels(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Every instruction set of this machine."""
    yield from _using(request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No compiled code from other tests."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
