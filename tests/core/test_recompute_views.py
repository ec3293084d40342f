"""Views that are kept: without their base where that has no other use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.multiprocessing.reductions import StorageWeakRef

import mishkit as mk
from mishkit.recompute import context, recompute
from mishkit.recompute.handles import Kept

WIDTH = 64
Use = Callable[[Tensor], Tensor]
held: list[Tensor] = []


def attention(qkv: Tensor) -> Tensor:
    """Keeps new tensors of q and k, as rotary embeddings make them, and v as a view."""
    q, k, v = qkv.view(*qkv.shape[:2], 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q * 2, k * 3, v).transpose(1, 2).flatten(2)


def first_token(tokens: Tensor) -> Tensor:
    """Keeps one of many tokens, as the heads of vision transformers do."""
    return tokens[:, 0].sin()


def two_thirds(qkv: Tensor) -> Tensor:
    q, k, _ = qkv.chunk(3, -1)
    return q.sin() + k.cos()


def all_of_it(qkv: Tensor) -> Tensor:
    return qkv[..., :WIDTH].sin() + qkv.cos()[..., :WIDTH]


def recomputed_from_the_base(qkv: Tensor) -> Tensor:
    """The third part is kept; the clone of the first can be made again from the base."""
    return qkv[..., -WIDTH:].sin() + qkv[..., :WIDTH].clone().cos()


def held_by_somebody(qkv: Tensor) -> Tensor:
    held.append(qkv)
    return qkv[..., :WIDTH].sin()


def expanded(qkv: Tensor) -> Tensor:
    """A view whose elements share memory can't be laid out again."""
    return qkv[:, :1, :WIDTH].expand(-1, 4, -1).sin()


class Network(nn.Module):
    def __init__(self, use: Use) -> None:
        super().__init__()
        self.linear, self.use = nn.Linear(WIDTH, 3 * WIDTH), use
        self.base: StorageWeakRef | None = None

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.linear(x)
        self.base = StorageWeakRef(qkv.untyped_storage())
        y = self.use(qkv)
        del qkv
        return torch.tanh(y.exp() * 0.5)


@contextmanager
def network_of(use: Use, dtype: torch.dtype = torch.float32) -> Iterator[tuple[Network, Tensor]]:
    torch.manual_seed(0)
    network = Network(use).to(dtype)
    yield network, torch.randn(4, 32, WIDTH, dtype=dtype, requires_grad=True)
    held.clear()


def gradients(network: Network, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y.float().square().sum(), (x, *network.parameters()))


@pytest.mark.parametrize("outside", [nullcontext, save_on_cpu], ids=["alone", "save_on_cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("use", "is_freed"),
    [
        (attention, True),
        (first_token, True),
        (two_thirds, False),
        (all_of_it, False),
        (recomputed_from_the_base, False),
        (held_by_somebody, False),
        (expanded, False),
    ],
)
def test_a_base_is_freed_if_a_smaller_part_is_all_that_is_needed(
    use: Use, is_freed: bool, dtype: torch.dtype, outside: Callable[[], Any]
) -> None:
    with network_of(use, dtype) as (network, x):
        want = gradients(network, x, network(x))
        with outside(), recompute():
            y = network(x)
        assert network.base is not None
        if outside is nullcontext:
            assert network.base.expired() == is_freed
        assert all(map(torch.equal, gradients(network, x, y), want))


def test_what_is_kept_is_counted() -> None:
    """Of q, k and v, autograd alone keeps new tensors of two, and all three for the third."""
    totals = []
    for context_of in (nullcontext, recompute):
        with network_of(attention) as (network, x):
            with mk.KeptBytes(exclude=(x, *network.parameters())) as kept, context_of():
                y = network.use(network.linear(x))
            totals.append(kept.total)
            gradients(network, x, y)
    logsumexp = x.nbytes // 16
    assert totals == [(5 + 1) * x.nbytes + logsumexp, (3 + 1) * x.nbytes + logsumexp]


@pytest.mark.parametrize("outside", [nullcontext, save_on_cpu], ids=["alone", "save_on_cpu"])
def test_a_view_that_was_overwritten_is_refused(outside: Callable[[], Any]) -> None:
    def overwritten(qkv: Tensor) -> Tensor:
        part = qkv[..., :WIDTH]
        y = part.sin()
        part.mul_(2)
        return y

    with network_of(overwritten) as (network, x):
        with outside(), recompute():
            y = network(x)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(network, x, y)


def test_a_copy_is_laid_out_as_the_view_was() -> None:
    packer = context._Packer(None)
    base = nn.Linear(WIDTH, 3 * WIDTH)(torch.randn(4, 32, WIDTH))
    view = base.view(4, 32, 3, 4, -1).permute(2, 0, 3, 1, 4)[2]
    want, strides, offset = view.clone(), view.stride(), view.storage_offset()
    kept = packer.pack(view)
    del base, view
    packer.end()
    assert isinstance(kept, Kept) and kept.nbytes == want.nbytes
    value = kept.value()
    assert torch.equal(value, want)
    assert (value.stride(), value.storage_offset()) == (strides, offset)


def test_a_view_of_what_somebody_holds_is_not_copied() -> None:
    packer = context._Packer(None)
    base = nn.Linear(WIDTH, 3 * WIDTH)(torch.randn(4, 32, WIDTH))
    kept = packer.pack(base[..., :WIDTH])
    packer.end()
    assert isinstance(kept, Kept) and kept.value().data_ptr() == base.data_ptr()


def test_the_bases_that_are_watched_are_few() -> None:
    """Else a recurrent network would look at all its steps for every tensor."""
    packer = context._Packer(None)
    linear = nn.Linear(WIDTH, 3 * WIDTH)
    bases = [linear(torch.randn(32, WIDTH)) for _ in range(20)]
    kept = [packer.pack(base[:, :WIDTH]) for base in bases]
    assert len(packer.views) == context.MOST_BASES
    packer.end()
    assert not packer.views and len(kept) == 20
