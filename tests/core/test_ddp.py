"""DistributedDataParallel over gloo with two processes: the gradients of one process."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from common import DEFAULTS, SAVING
from interpreters import in_two_processes
from torch import Tensor, nn

import mishkit

WORLD, BATCH = 2, 16


def network(options: dict) -> nn.Module:
    """Each function once, the same each time."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3)]
    for case in DEFAULTS:
        layers += [getattr(mishkit, case.a.module_name)(**options), nn.Conv2d(8, 8, 3, padding=1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4)).double()


def gradients(net: nn.Module, x: Tensor) -> list[Tensor]:
    net(x).square().mean().backward()
    return [p.grad for p in net.parameters()]


def batch() -> Tensor:
    x = torch.randn(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    return x.to(memory_format=torch.channels_last)


def work(rank: int, results: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{results}/store", rank=rank, world_size=WORLD
    )
    by_options = {}
    for name, options in SAVING.items():
        net = network(options)
        with torch.no_grad():
            net(batch())  # gives the last layer its size
        part = batch().chunk(WORLD)[rank]
        by_options[name] = gradients(nn.parallel.DistributedDataParallel(net), part)
    torch.save(by_options, f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_find_the_gradients_of_one(tmp_path: Path) -> None:
    in_two_processes(work, str(tmp_path))
    for name, options in SAVING.items():
        net = network(options)
        with torch.no_grad():
            net(batch())
        want = gradients(net, batch())
        for rank in range(WORLD):
            got = torch.load(tmp_path / f"{rank}.pt")[name]
            for g, w in zip(got, want, strict=True):
                torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-8)
