"""What autograd keeps in a tensor's stead.

A node of autograd's graph keeps a `Kept` (the tensor itself) or a `Handle` (how to make it). The
nodes that need one tensor share one `Made`; what it makes is held until the last of them has run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .recipes import Node, Recipe

Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]
"""Of other saved-tensor hooks: what packs and what unpacks."""

_CHANGED = (
    "one of the variables needed for gradient computation has been modified by an inplace "
    "operation: [{} of shape {}] is at version {}; expected version {} instead"
)


class Kept:
    """A tensor that is kept, through the hooks that were active outside."""

    sums = 0

    def __init__(self, tensor: Tensor, outside: Hooks | None = None) -> None:
        self._version, self._outside = tensor._version, outside
        # Detached, as an output that its own node keeps would never be freed.
        self._packed = tensor.detach() if outside is None else outside[0](tensor)
        self.base: Kept | None = None
        """The tensor that this one is a view of, where it is kept by being kept here."""

    def value(self) -> Tensor:
        """The tensor; RuntimeError if something was written over it."""
        if self._outside is not None:
            return self._outside[1](self._packed)
        tensor: Tensor = self._packed
        if tensor._version != self._version:
            raise RuntimeError(
                _CHANGED.format(tensor.type(), [*tensor.shape], tensor._version, self._version)
            )
        return tensor


class Made:
    """The output of a node, which its recipe makes."""

    def __init__(
        self, node: Node, number: int, recipe: Recipe, inputs: Sequence[Source], sums: int
    ) -> None:
        self.node, self.number, self.recipe = node, number, recipe
        self.inputs, self.sums = inputs, sums
        self._value: Tensor | None = None

    def value(self) -> Tensor:
        """The tensor; made once, and held as long as a node is still to come that needs it."""
        value = self._value
        if value is None:
            inputs = [source.value() for source in self.inputs]
            value = self._value = self.recipe.make(self.node, inputs, self.number)
        return value


Source = Kept | Made


class Handle:
    """A tensor that is to be made, in the layout that it had."""

    def __init__(self, made: Made, tensor: Tensor) -> None:
        self._made = made
        self._shape, self._strides = tensor.shape, tensor.stride()
        self._device = tensor.device.type

    def tensor(self) -> Tensor:
        """As it was."""
        # Recipes call the kernels that ran, with the dtypes that they ran in.
        with torch.no_grad(), torch.autocast(self._device, enabled=False):
            value = self._made.value()
            if value.stride() == self._strides and value.shape == self._shape:
                return value
            result = torch.empty_strided(
                self._shape, self._strides, dtype=value.dtype, device=value.device
            )
            return result.copy_(value)


def unpack(packed: Kept | Handle) -> Tensor:
    """The tensor behind what a node keeps."""
    return packed.tensor() if isinstance(packed, Handle) else packed.value()
