"""What is kept for backward, in units of one hidden activation: ours, and torch's as a control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import TURNING, Case, every_function, mostly_slow
from torch import Tensor, nn

import mishkit
from mishkit import KeptBytes

BATCH, WIDTH, CHANNELS, SIDE = 64, 96, 16, 20


def linears(act: nn.Module) -> tuple[nn.Module, Tensor, int]:
    """linear → act → linear; with an input, and the bytes of the activation between."""
    net = nn.Sequential(nn.Linear(8, WIDTH), act, nn.Linear(WIDTH, 4))
    return net, torch.randn(BATCH, 8), BATCH * WIDTH * 4


def convolutions(act: nn.Module) -> tuple[nn.Module, Tensor, int]:
    """conv → BN → act → conv."""
    net = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 3, padding=1),
        nn.BatchNorm2d(CHANNELS),
        act,
        nn.Conv2d(CHANNELS, 4, 3, padding=1),
    )
    return net, torch.randn(8, 3, SIDE, SIDE), 8 * CHANNELS * SIDE * SIDE * 4


NETWORKS = {"linear": linears, "convolution": convolutions}
Network = Callable[[nn.Module], tuple[nn.Module, Tensor, int]]
OURS = {"linear": 1.032, "convolution": 2.04}
TORCHS = {"linear": 2.0, "convolution": 3.004}

every_network = pytest.mark.parametrize("network", NETWORKS)


def units(
    network: str, act: nn.Module, wrap: Callable[[nn.Module], Any] = lambda net: net
) -> float:
    """What a training step keeps, without parameters, buffers and the input."""
    net, x, unit = NETWORKS[network](act)
    call = wrap(net)
    exist = [*net.parameters(), *net.buffers(), x]
    call(x).sum().backward()  # compiled, if it is
    with KeptBytes(exclude=exist) as kept:
        y = call(x)
    y.sum().backward()
    return kept.total / unit


def compiled(net: nn.Module) -> Any:
    """Partitioned as torch.compile does for inductor, without generating code."""
    return torch.compile(net, fullgraph=True, backend="aot_eager_decomp_partition")


TWINS = [c for c in TURNING if c.a.torch_function]
torchs = pytest.mark.parametrize("case", TWINS, ids=str)
turning = pytest.mark.parametrize("case", TURNING, ids=str)
lean = pytest.mark.parametrize("options", [{"save": "output"}, {"inplace": True}], ids=str)


@every_network
@torchs
def test_torchs_own_keep_input_and_output(case: Case, network: str) -> None:
    """The control: the counter finds what is known."""
    act = getattr(nn, case.a.module_name)()
    assert units(network, act) == pytest.approx(TORCHS[network], abs=5e-3)
    assert units(network, getattr(mishkit, case.a.module_name)()) == pytest.approx(
        TORCHS[network], abs=5e-3
    )


@every_network
@turning
@lean
def test_saving_the_output_keeps_one_activation_and_a_bit(
    case: Case, network: str, options: dict[str, Any]
) -> None:
    act = getattr(mishkit, case.a.module_name)(**options)
    got = units(network, act)
    assert OURS[network] - 0.035 < got <= OURS[network]


@every_network
@every_function
def test_monotone_functions_keep_no_bit(case: Case, network: str) -> None:
    if case.turn is not None:
        return
    act = getattr(mishkit, case.a.module_name)(save="output")
    assert units(network, act) == pytest.approx(TORCHS[network] - 1, abs=5e-3)


@pytest.mark.parametrize(
    ("case", "network"),
    mostly_slow([*((case, "linear") for case in TURNING), (TURNING[-1], "convolution")], 3),
    ids=str,
)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_as_in_eager(case: Case, network: str) -> None:
    act = getattr(mishkit, case.a.module_name)(save="output")
    assert units(network, act, compiled) <= OURS[network]


@every_network
@pytest.mark.parametrize("case", [case for case in TURNING if case.a.trainable], ids=str)
def test_trained_parameters_keep_the_input_and_little_more(case: Case, network: str) -> None:
    channels = {"linear": WIDTH, "convolution": CHANNELS}[network]
    act = getattr(mishkit, case.a.module_name)(trainable=True, num_parameters=channels)
    got = units(network, act)
    assert TORCHS[network] - 5e-3 <= got <= TORCHS[network] + 0.06


# ---- the counter itself ----


def test_a_storage_counts_once_and_whole() -> None:
    x = torch.randn(100, requires_grad=True)
    with KeptBytes() as kept:
        y = x[:10].sin() + x[50:].cos().sum()
    assert kept.total == 400 and len(kept.storages) == 1
    with KeptBytes(exclude=[x]) as kept:
        y = y + x.sin().sum()
    assert kept.total == 0


def test_nothing_is_kept_without_grad() -> None:
    with KeptBytes() as kept, torch.no_grad():
        mishkit.mish(torch.randn(100, requires_grad=True), save="output")
    assert kept.total == 0
    mishkit.mish(torch.randn(100, requires_grad=True), save="output")
    assert kept.total == 0
