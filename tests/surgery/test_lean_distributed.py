"""A model that recomputes, trained in two processes: DDP with and without static graph, FSDP2."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from interpreters import in_two_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import mishkit as mk

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    block = [nn.Linear(64, 64), nn.LayerNorm(64), nn.SiLU(), nn.Dropout(0.1)]
    return nn.Sequential(*block, *copy.deepcopy(block), nn.Linear(64, 8))


def rows(rank: int, step: int) -> Tensor:
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(10 * step + rank))


def trained(model: nn.Module, rank: int, accumulate: bool = False) -> None:
    """Two steps of SGD; each of two passes, of which only the second synchronises."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        torch.manual_seed(step)
        if accumulate:
            with model.no_sync():
                model(rows(rank, step + 7)).square().mean().backward()
        model(rows(rank, step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def _work(rank: int, store: str) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        _in_a_process(rank)
    finally:
        dist.destroy_process_group()


def _in_a_process(rank: int) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    # torch itself fails for a static graph whose first pass does not synchronise.
    for options, accumulate in (({}, False), ({}, True), ({"static_graph": True}, False)):
        parameters = []
        for choice in (None, {}, {"budget": 0.8}):
            model = network()
            mk.swap(model, {"silu": "silu"})  # our kernels in all
            if choice is not None:
                report = mk.lean(model, rows(rank, 0), **choice)
                assert report.lean < report.kept
            trained(DistributedDataParallel(model, **options), rank, accumulate)
            parameters.append([p.detach() for p in model.parameters()])
        for others in parameters[1:]:
            assert all(map(torch.equal, parameters[0], others)), (options, accumulate)

    mesh = init_device_mesh("cpu", (2,))
    parameters = []
    for is_lean in (False, True):
        model = network()
        mk.swap(model, {"silu": "silu"})
        if is_lean:
            mk.lean(model, rows(rank, 0))
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        trained(model, rank)
        parameters.append([p.full_tensor() for p in model.parameters()])
    assert all(map(torch.equal, *parameters))


def test_two_processes(tmp_path: Path) -> None:
    in_two_processes(_work, str(tmp_path / "store"))
