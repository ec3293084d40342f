"""Fixtures: what computes the operators, and numbers that come out the same each time."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator

# Before torch is imported. Threads that spin while they wait take the cores from the other
# workers' tests, which then take several times as long.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

import pytest
import torch
from common import ENGINES, EVERY_ENGINE, KERNELS, PLAIN, TRITON, Engine

from mishkit._torchvision import mend_torchvision
from mishkit.backends import cpu, triton
from mishkit.lab.accuracy.interpreter import make_faithful

# Without a GPU Triton's kernels run in its interpreter; it looks at this when it is imported.
interpreted = not torch.cuda.is_available()
if interpreted:
    os.environ["TRITON_INTERPRET"] = "1"

TORCHS_OWN = [
    r"`torch\.jit\.",  # a DeprecationWarning, or since 2.14 a FutureWarning
    ".*treespec:FutureWarning",
    ".*Profiler clears events at the end of each cycle:UserWarning",  # torch 2.10
    ".*autograd.function.Function.* should not be instantiated:DeprecationWarning",
]
"""What torch says to itself in its compiler, its exporter and its forward mode."""


def pytest_configure(config: pytest.Config) -> None:
    for warning in TORCHS_OWN:
        config.addinivalue_line("filterwarnings", f"ignore:{warning}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Commands look for modules beside a user's file. For later tests, and the processes that they
    start, a folder with a json.py would hide Python's own."""
    before = list(sys.path)
    try:
        return (yield)
    finally:
        sys.path[:] = before


@pytest.fixture(scope="module", autouse=True)
def _old_objects_are_not_collected() -> None:
    """Modules and collected tests are millions of objects, through which Python's collector would
    go again and again: a second each time that a test or the lab's clock collects garbage."""
    gc.collect()
    gc.freeze()


def _using(engine: Engine) -> Iterator[Engine]:
    if engine is PLAIN or engine in TRITON:
        yield engine
        return
    with cpu.using(engine.name):
        yield engine


@pytest.fixture(params=ENGINES, ids=str)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Every instruction set of this machine, then plain torch."""
    yield from _using(request.param)


@pytest.fixture(params=EVERY_ENGINE, ids=str)
def every_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The same, and Triton."""
    yield from _using(request.param)


@pytest.fixture(scope="session", autouse=True)
def _faithful_interpreter() -> None:
    """What runs in Triton's interpreter runs as on a GPU, and in larger blocks, which take it no
    longer than small ones; most tensors of the tests still have whole blocks and a part of one."""
    if TRITON and interpreted:
        make_faithful()
        triton.LANES = 64


@pytest.fixture(params=KERNELS, ids=str)
def kernels(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Every instruction set of this machine."""
    yield from _using(request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """torch.manual_seed also writes down for each kind of device, present or not, where it was
    called: milliseconds each time."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No compiled code from other tests."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def torchvision() -> None:
    """What timm and transformers import, as the command line has it."""
    mend_torchvision()
