"""Masks in one bit per element: what is packed comes back bit by bit; nothing else is packed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from common import DENSE, ENGINES, KERNELS, Engine, assert_same_bits, name_of, threads
from pairwise import pairwise
from torch import Tensor

import mishkit as mk
from mishkit.activation import DTYPES
from mishkit.ops import mask as ops
from mishkit.recompute.handles import Bits, bits_of

MASKS = (torch.bool, *DTYPES)
every_mask = pytest.mark.parametrize("dtype", MASKS, ids=name_of)


def pack_by(engine: Engine) -> Callable[[Tensor], tuple[Tensor, float]]:
    return ops._pack if engine.name == "plain" else torch.ops.mishkit.pack_mask


def unpack_by(engine: Engine) -> Callable[[Tensor, Tensor, float], None]:
    return ops._unpack if engine.name == "plain" else torch.ops.mishkit.unpack_mask


def mask(dtype: torch.dtype, *shape: int, value: float = 1 / 0.7) -> Tensor:
    kept = torch.rand(shape) < 0.7
    return kept if dtype == torch.bool else kept.to(dtype) * value


@pairwise(
    {
        "engine,dtype": [(e, d) for e in ENGINES for d in MASKS],
        "count": [1, 7, 8, 31, 64, 65, 1000, 40007],
        "value": [1.0, 1 / 0.9, 2.0, 3e4],
    }
)
def test_it_comes_back(engine: Engine, dtype: torch.dtype, count: int, value: float) -> None:
    x = mask(dtype, count, value=value)
    bits, scale = pack_by(engine)(x)
    assert bits.shape == ((count + 7) // 8,) and bits.dtype == torch.uint8
    assert scale == (1 if dtype == torch.bool or not x.any() else float(x.max()))
    assert torch.equal(bits, ops._pack(x)[0])
    out = torch.empty_like(x)
    unpack_by(engine)(bits, out, scale)
    assert_same_bits(out, x)


@pytest.mark.parametrize("layout", DENSE)
@every_mask
def test_layouts(layout: str, dtype: torch.dtype, engine: Engine) -> None:
    x = torch.empty_like(DENSE[layout](), dtype=dtype)
    x.copy_(mask(dtype, *x.shape))
    out = torch.empty_like(x)
    unpack_by(engine)(*_in_order(pack_by(engine)(x), out))
    assert_same_bits(out, x)


def _in_order(packed: tuple[Tensor, float], out: Tensor) -> tuple[Tensor, Tensor, float]:
    return packed[0], out, packed[1]


@pytest.mark.parametrize("wrong", [0.5, -0.0, -1.0, torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("place", [0, 3, 500, 998, 999])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_what_is_no_mask(dtype: torch.dtype, place: int, wrong: float, engine: Engine) -> None:
    x = mask(dtype, 1000)
    x[place] = wrong
    x[2] = 1 / 0.7
    assert pack_by(engine)(x)[1] == 0


@every_mask
def test_all_zeros_and_all_ones(dtype: torch.dtype, engine: Engine) -> None:
    for x in (torch.zeros(100, dtype=dtype), torch.ones(100, dtype=dtype)):
        bits, value = pack_by(engine)(x)
        assert value == 1
        out = torch.empty_like(x)
        unpack_by(engine)(bits, out, value)
        assert_same_bits(out, x)


@pytest.mark.skipif(not KERNELS, reason="the kernels were not built")
def test_any_number_of_threads() -> None:
    for x in (mask(torch.float32, 300_001), mask(torch.bool, 300_001)):
        with threads(1):
            bits, value = torch.ops.mishkit.pack_mask(x)
        with threads(3):
            again, _ = torch.ops.mishkit.pack_mask(x)
            out = torch.empty_like(x)
            torch.ops.mishkit.unpack_mask(bits, out, value)
        assert torch.equal(again, bits) and torch.equal(out, x)
    x = mask(torch.float32, 300_001)
    x[123_456] = 7
    assert torch.ops.mishkit.pack_mask(x)[1] == 0


@pytest.mark.skipif(not KERNELS, reason="the kernels were not built")
def test_misuse() -> None:
    pack, unpack = torch.ops.mishkit.pack_mask, torch.ops.mishkit.unpack_mask
    bits = torch.zeros(2, dtype=torch.uint8)
    for message, call in {
        "bools or of floats": lambda: pack(torch.zeros(9, dtype=torch.int64)),
        "one run of memory": lambda: pack(torch.zeros(9, 9)[:, ::2]),
        "one bit an element": lambda: unpack(bits, torch.zeros(99), 1.0),
        "packed in uint8": lambda: unpack(bits.float(), torch.zeros(9), 1.0),
    }.items():
        with pytest.raises(RuntimeError, match=message):
            call()


# ---- within recompute ----------------------------------------------------------------------------


def test_only_masks_are_packed() -> None:
    assert isinstance(bits_of(mask(torch.float32, 999)), Bits)
    assert isinstance(bits_of(mask(torch.bool, 999)), Bits)
    for other in (
        torch.randn(999),
        torch.zeros(999, dtype=torch.int64),
        torch.zeros(99, 99)[:, ::2],
        mask(torch.float32, 999).requires_grad_(),
    ):
        assert bits_of(other) is None


@pytest.mark.parametrize(
    "dropout",
    [lambda x: F.dropout(x, 0.1), lambda x: torch.native_dropout(x, 0.1, True)[0]],
    ids=["dropout", "native"],
)
def test_dropout_keeps_a_bit_per_element(dropout: Callable[[Tensor], Tensor]) -> None:
    """And nothing else, if its input can be recomputed."""
    gradients, kept_bytes = [], []
    for within in (nullcontext, mk.recompute):
        torch.manual_seed(0)
        x, weight = torch.randn(64, 512).requires_grad_(), torch.randn(8, 512).requires_grad_()
        with mk.KeptBytes(exclude=[x, weight]) as kept, within():
            y = F.linear(dropout(F.silu(x)), weight).sum()
        y.backward()
        gradients.append(torch.cat([x.grad, weight.grad]))
        kept_bytes.append(kept.total)
    assert torch.equal(*gradients)
    assert kept_bytes[1] == 64 * 512 // 8 < kept_bytes[0]


def test_a_mask_that_is_written_over_later() -> None:
    """The gradient is that of the mask as it was."""
    x, noise = torch.randn(100, 100).requires_grad_(), mask(torch.float32, 100, 100)
    before = noise.clone()
    with mk.recompute():
        y = (x * noise).sum()
    noise.zero_()
    y.backward()
    assert torch.equal(x.grad, before)
