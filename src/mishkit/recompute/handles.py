"""What autograd keeps in place of a tensor.

A node of the autograd graph keeps either a `Kept` (the tensor itself) or a `Handle` (how to
recompute it). All nodes that need the same tensor share one `Made`, and the tensor it computes is
held until the last of them has run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._mode import is_grad_enabled
from .._torch_private import is_any_autocast_enabled
from ..activation import DTYPES
from ..backends.torch import is_dense
from ..functions import ACTIVATIONS
from ..memory import check_version, has_data
from ..ops.affine import Affine, affine_backward
from ..ops.blend import function
from ..ops.mask import pack_mask, unpack_mask
from .choice import Kind
from .recipes import Node, Recipe

Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]
"""Another context's saved-tensor hooks: the pack and the unpack function."""
Result = TypeVar("Result")


class Leaf:
    """A tensor without a node of its own, which is kept as it is."""

    __slots__ = ("__weakref__", "_tensor", "_version")
    sums = products = 0
    is_product = False

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._version = tensor, tensor._version

    def value(self) -> Tensor:
        """The tensor; raises RuntimeError if it was modified in place."""
        check_version(self._tensor, self._version)
        return self._tensor


class Kept(Leaf):
    """A tensor that is kept, packed by the hooks that were active outside."""

    __slots__ = ("_layout", "_outside", "base", "is_needed")

    def __init__(self, tensor: Tensor, outside: Hooks | None = None) -> None:
        self._version, self._outside = tensor._version, outside
        # Detach: an output saved by its own node would otherwise never be freed.
        self._tensor = tensor.detach() if outside is None else outside[0](tensor)
        self._layout: tuple[tuple[int, ...], int] | None = None
        """The strides and the offset of the tensor, if a copy is kept."""
        self.base: Kept | None = None
        """The base of this view, if keeping the view also keeps the base."""
        self.is_needed = False
        """Whether something else may be recomputed from this."""

    def value(self) -> Tensor:
        """The tensor; raises RuntimeError if it was modified in place."""
        outside = self._outside
        tensor: Tensor = super().value() if outside is None else outside[1](self._tensor)
        return tensor if self._layout is None else self._laid_out(tensor, *self._layout)

    def _laid_out(self, copy: Tensor, strides: tuple[int, ...], offset: int) -> Tensor:
        # A matrix product may round otherwise where rows are elsewhere in memory.
        last = sum((size - 1) * stride for size, stride in zip(copy.shape, strides, strict=True))
        memory = copy.new_empty(offset + last + 1)
        return memory.as_strided(copy.shape, strides, offset).copy_(copy)

    @property
    def nbytes(self) -> int:
        """The size of the tensor, as long as no hooks outside have it."""
        return self._tensor.nbytes

    def copy(self) -> bool:
        """Keep a copy of this view from now on, without its base. False if that can't be done."""
        tensor = self._tensor
        if tensor._version != self._version or not _are_apart(tensor):
            return False
        self._layout, self.base = (tensor.stride(), int(tensor.storage_offset())), None
        self._tensor = tensor.clone()
        self._version = self._tensor._version
        return True

    def hand_over(self, outside: Hooks) -> None:
        """Have hooks outside pack what is kept, unless it has been overwritten: see `value`."""
        if self._tensor._version == self._version:
            self._tensor, self._outside = outside[0](self._tensor), outside


def _are_apart(tensor: Tensor) -> bool:
    """Whether no two elements share memory, as those of expanded tensors do."""
    extent = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride < extent:
                return False
            extent += (size - 1) * stride
    return True


class Bits:
    """A mask that is kept in one bit per element: see `mishkit.ops.mask`."""

    __slots__ = ("_bits", "_device", "_dtype", "_outside", "_shape", "_strides", "_value")

    def __init__(self, tensor: Tensor, bits: Tensor, value: float, outside: Hooks | None) -> None:
        self._bits = bits if outside is None else outside[0](bits)
        self._value, self._outside = value, outside
        self._shape, self._strides = tensor.shape, tensor.stride()
        self._dtype, self._device = tensor.dtype, tensor.device

    @property
    def nbytes(self) -> int:
        """What is kept."""
        return (self._shape.numel() + 7) // 8

    def value(self) -> Tensor:
        """The mask as it was."""
        result = torch.empty_strided(
            self._shape, self._strides, dtype=self._dtype, device=self._device
        )
        bits = self._bits if self._outside is None else self._outside[1](self._bits)
        unpack_mask(bits, result, self._value)
        return result


def bits_of(tensor: Tensor, outside: Hooks | None = None) -> Bits | None:
    """The tensor in one bit per element, if it is a mask: of bools, or on a CPU of floats that are
    0 or one other number. (Elsewhere, to look at the floats would wait for the device.)
    """
    dtype = tensor.dtype
    if dtype is not torch.bool and not (dtype in DTYPES and (tensor.is_cpu or tensor.is_meta)):
        return None
    if tensor.requires_grad or not is_dense(tensor):
        return None
    if not has_data(tensor):
        return _bits_without_data(tensor, outside)
    bits, value = pack_mask(tensor)
    return Bits(tensor, bits, value, outside) if value else None


def _bits_without_data(tensor: Tensor, outside: Hooks | None) -> Bits | None:
    """The same for a tensor without elements to look at. Floats are taken for a mask if they were
    written to twice, as dropout writes those that it draws on a CPU.
    """
    if tensor.dtype is not torch.bool and tensor._version != 2:
        return None
    bits = tensor.new_empty((tensor.numel() + 7) // 8, dtype=torch.uint8)
    return Bits(tensor, bits, 1.0, outside)


class Made:
    """A node's output that its recipe can recompute."""

    __slots__ = (
        *("__weakref__", "_affine", "_value", "inputs", "is_dropped", "is_product", "node"),
        *("number", "products", "recipe", "seconds", "sums"),
    )

    def __init__(
        self,
        node: Node,
        number: int,
        recipe: Recipe,
        inputs: Sequence[Source],
        sums: int,
        products: int,
    ) -> None:
        self.node, self.number, self.recipe = node, number, recipe
        self.inputs, self.sums, self.products = inputs, sums, products
        self.is_product: bool = recipe.is_product or any(source.is_product for source in inputs)
        """Whether this, or what this is a view of, is a matrix product."""
        self.is_dropped = False
        """Whether a tensor was dropped because of this."""
        self.seconds: tuple[dict[Kind, float], Kind] | None = None
        """Where to add the time that this takes, if it is measured."""
        self._value: Tensor | None = None
        self._affine: Affine | None = None

    def value(self) -> Tensor:
        """The tensor, computed once and held while any node that needs it has yet to run."""
        value = self._value
        if value is None:
            start = time.perf_counter() if self.seconds else 0.0
            inputs = [source.value() for source in self.inputs]
            value = self._value = self.recipe.make(self.node, inputs, self.number)
            if self.seconds:
                total, kind = self.seconds
                total[kind] += time.perf_counter() - start
        return value

    def kind(self, nbytes: int) -> Kind:
        """What kind of tensor this is, of that size in bytes."""
        return Kind(self.is_product, self.node.name(), nbytes.bit_length())

    def affine(self) -> Affine | None:
        """The tensor as scale·x + shift, if its recipe can tell and nobody has computed it yet."""
        if self._value is not None or self.recipe.affine is None:
            return None
        if self._affine is None:
            self._affine = self.recipe.affine(self.node, self.inputs)
        return self._affine


Source = Leaf | Made


class Handle:
    """A tensor to be recomputed, in its original layout. Several nodes may share one."""

    __slots__ = ("_tensor", "made", "shape", "strides")

    def __init__(self, made: Made, tensor: Tensor) -> None:
        self.made, self.shape, self.strides = made, tensor.shape, tensor.stride()
        self._tensor: Tensor | None = None

    def tensor(self) -> Tensor:
        """The tensor as it was, held while any node that needs it has yet to run."""
        return self._plainly(self._laid_out) if self._tensor is None else self._tensor

    def _laid_out(self) -> Tensor:
        value = self.made.value()
        if value.shape != self.shape:  # the same elements, reshaped
            if value.is_contiguous():
                # Takes half as long as a view does.
                value = value.as_strided(self.shape, self.strides)
            else:
                value = value.reshape(self.shape)
        if value.stride() == self.strides:
            self._tensor = value
            return value
        result = torch.empty_strided(
            self.shape, self.strides, dtype=value.dtype, device=value.device
        )
        return result.copy_(value)

    def affine(self) -> Affine | None:
        """The tensor as scale·x + shift, if that is possible and nobody has computed it yet."""
        affine = self._plainly(self.made.affine)
        if affine is None or affine.input.stride() != self.strides:
            return None
        return affine if affine.input.shape == self.shape else None

    def gradient_through(
        self, name: str, parameters: Sequence[float], grad: Tensor
    ) -> Tensor | None:
        """grad·f'(this tensor) in one pass, for a function of the table, if that is possible."""
        affine = self.affine() if name in ACTIVATIONS else None
        if affine is None or grad.dtype != affine.input.dtype:
            return None
        return affine_backward(grad, *affine, *function(name, *parameters))

    def _plainly(self, compute: Callable[[], Result]) -> Result:
        """compute() without gradients, and without autocast: recipes call the kernels of the
        forward pass with the dtypes that these had.
        """
        if not (is_grad_enabled() or is_any_autocast_enabled()):
            return compute()
        device = self.made.node._input_metadata[0].device.type
        if device == "meta":  # which torch.autocast does not know
            device = "cpu"
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return compute()


def unpack(packed: Leaf | Bits | Handle) -> Tensor:
    """The tensor that a node's packed value stands for."""
    return packed.tensor() if type(packed) is Handle else packed.value()  # type: ignore[union-attr]
