"""Masks in one bit per element: the operators.

    mishkit::pack_mask(input) -> (bits, value)
    mishkit::unpack_mask(bits, out!, value)

The input's elements are bools, or floats that are 0 or one other, positive number, as in what
dropout multiplies by on a CPU. `value` is that number; it is 0 if the input is not like that, and
then the bits mean nothing. `bits` has ceil(n/8) bytes, in the memory order of the input, which
fills one run of memory, with element 0 in the lowest bit. `out` has the input's dtype, shape and
strides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import torch as plain
from .functions import operator


def _pack(x: Tensor) -> tuple[Tensor, float]:
    row = plain.in_memory_order(x)
    if row.dtype == torch.bool:
        return plain.pack(row), 1.0
    bits = row > 0
    value = float(row.max()) if bits.any() else 1.0
    fits = torch.equal(bits.to(row.dtype) * value, row)
    is_negative_zero = (row == 0) & row.signbit()
    return plain.pack(bits), value if fits and not is_negative_zero.any() else 0.0


def _unpack(bits: Tensor, out: Tensor, value: float) -> None:
    row = plain.unpack(bits, out.numel())
    if out.dtype != torch.bool:
        row = row.to(out.dtype) * value
    out.copy_(plain.from_memory_order(row, out))


_library = torch.library.Library("mishkit", "FRAGMENT")
_library.define("pack_mask(Tensor input) -> (Tensor, float)")
_library.define("unpack_mask(Tensor bits, Tensor(a!) out, float value) -> ()")
_library.impl("pack_mask", _pack, "CompositeExplicitAutograd")
_library.impl("unpack_mask", _unpack, "CompositeExplicitAutograd")

pack_mask = operator("pack_mask")
unpack_mask = operator("unpack_mask")
