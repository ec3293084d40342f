"""DTensors, in two processes: each computes its part, with the kernels, and nothing is mixed up."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from interpreters import in_two_processes
from torch import Tensor, nn

import mishkit as mk

if not dist.is_available() or not dist.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

FUNCTIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Tensor], Tensor]]] = {
    "mish": (mk.mish, F.mish),
    "silu, output": (lambda x: mk.silu(x, save="output"), F.silu),
    "h_mish": (mk.h_mish, mk.h_mish),
    "softplus": (lambda x: mk.softplus(x, 2.0), lambda x: F.softplus(x, 2.0)),
    "aptx, output": (lambda x: mk.aptx(x, 0.9, save="output"), lambda x: mk.aptx(x, 0.9)),
}


def _rows() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(7, 6)  # which two processes share unevenly


def _gradient(y: Any, x: Any) -> Tensor:
    (y * y).sum().backward()
    grad = x.grad
    return grad.full_tensor() if hasattr(grad, "full_tensor") else grad


def _check(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-5)


def _work(rank: int, store: str) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        _in_a_process()
    finally:
        dist.destroy_process_group()


def _in_a_process() -> None:
    from torch.distributed.tensor import (
        DTensor,
        Partial,
        Replicate,
        Shard,
        distribute_tensor,
        init_device_mesh,
    )
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh, x = init_device_mesh("cpu", (2,)), _rows()

    # Functions: the placement stays, unless it is a sum that is open.
    for ours, theirs in FUNCTIONS.values():
        leaf = x.clone().requires_grad_()
        want = theirs(leaf)
        slope = _gradient(want, leaf)
        for placement in (Shard(0), Shard(1), Replicate()):
            given = distribute_tensor(x, mesh, [placement]).requires_grad_()
            y = ours(given)
            assert y.placements == (placement,) and y.shape == x.shape
            assert type(y.grad_fn).__name__ != "MishBackward0"  # the kernels, and not torch's own
            _check(y.full_tensor(), want)
            _check(_gradient(y, given), slope)
            with torch.no_grad():
                _check(ours(given).full_tensor(), want)
        halves = [x / 3, x * 2 / 3]
        given = DTensor.from_local(halves[dist.get_rank()], mesh, [Partial()]).requires_grad_()
        y = ours(given)
        assert not y.placements[0].is_partial()
        _check(y.full_tensor(), want)
        _check(_gradient(y, given), slope)

    # In place and out=, by torch's own operators, where torch has them for distributed tensors.
    given = distribute_tensor(x, mesh, [Shard(0)])
    out = torch.empty_like(given)
    try:
        F.mish(given)
    except NotImplementedError:  # as in torch 2.10
        with pytest.raises(RuntimeError, match="got a DTensor"):
            mk.mish(given, out=out)
        return
    assert mk.mish(given, out=out) is out
    assert mk.mish(given, inplace=True) is given
    _check(out.full_tensor(), F.mish(x))
    _check(given.full_tensor(), F.mish(x))

    # Trained parameters: the gradients of all processes together.
    trained = mk.APTx(trainable=True)
    want = torch.autograd.grad((trained(x) ** 2).sum(), [*trained.parameters()])
    for placement in (Shard(0), Shard(1), Replicate()):
        y = trained(distribute_tensor(x, mesh, [placement]))
        got = torch.autograd.grad((y * y).sum(), [*trained.parameters()])
        for ours, theirs in zip(got, want, strict=True):
            _check(ours.full_tensor() if isinstance(ours, DTensor) else ours, theirs)

    # A model in tensor parallel, swapped and lean.
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 4))
    want_of = copy.deepcopy(model)
    plan: dict[str, Any] = {
        "0": ColwiseParallel(use_local_output=False),
        "2": RowwiseParallel(),
    }
    parallelize_module(model, mesh, plan)
    report = mk.lean(model, x, recompute=False)
    (site,) = report.sites
    assert site.advice == "output" and isinstance(model[1], mk.SiLU)
    # Its part: 7 × 4 numbers, and a bit for each.
    assert (
        site.kept == 7 * 4 * 4 and report.kept - report.after_lean == site.kept - (7 * 4 + 7) // 8
    )
    for change in (None, {"silu": "mish"}):
        if change:
            mk.swap(model, change)
            mk.swap(want_of, change)
        model.zero_grad(), want_of.zero_grad()
        y, want = model(x), want_of(x)
        _check(y, want)
        (y * y).sum().backward()
        (want * want).sum().backward()
        for ours, theirs in zip(model.parameters(), want_of.parameters(), strict=True):
            _check(ours.grad.full_tensor(), theirs.grad)


def test_two_processes(tmp_path: Path) -> None:
    in_two_processes(_work, str(tmp_path / "store"))
