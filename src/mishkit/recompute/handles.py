"""What autograd keeps in place of a tensor.

A node of the autograd graph keeps either a `Kept` (the tensor itself) or a `Handle` (how to
recompute it). All nodes that need the same tensor share one `Made`, and the tensor it computes is
held until the last of them has run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .recipes import Node, Recipe

Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]
"""Another context's saved-tensor hooks: the pack and the unpack function."""

_CHANGED = (
    "one of the variables needed for gradient computation has been modified by an inplace "
    "operation: [{} of shape {}] is at version {}; expected version {} instead"
)


class Kept:
    """A tensor that is kept, packed by the hooks that were active outside."""

    sums = 0

    def __init__(self, tensor: Tensor, outside: Hooks | None = None) -> None:
        self._version, self._outside = tensor._version, outside
        # Detach: an output saved by its own node would otherwise never be freed.
        self._packed = tensor.detach() if outside is None else outside[0](tensor)
        self.base: Kept | None = None
        """The base of this view, if keeping the view also keeps the base."""

    def value(self) -> Tensor:
        """The tensor; raises RuntimeError if it was modified in place."""
        if self._outside is not None:
            return self._outside[1](self._packed)
        tensor: Tensor = self._packed
        if tensor._version != self._version:
            raise RuntimeError(
                _CHANGED.format(tensor.type(), [*tensor.shape], tensor._version, self._version)
            )
        return tensor


class Made:
    """A node's output that its recipe can recompute."""

    def __init__(
        self, node: Node, number: int, recipe: Recipe, inputs: Sequence[Source], sums: int
    ) -> None:
        self.node, self.number, self.recipe = node, number, recipe
        self.inputs, self.sums = inputs, sums
        self._value: Tensor | None = None

    def value(self) -> Tensor:
        """The tensor, computed once and held while any node that needs it has yet to run."""
        value = self._value
        if value is None:
            inputs = [source.value() for source in self.inputs]
            value = self._value = self.recipe.make(self.node, inputs, self.number)
        return value


Source = Kept | Made


class Handle:
    """A tensor to be recomputed, in its original layout."""

    def __init__(self, made: Made, tensor: Tensor) -> None:
        self._made = made
        self._shape, self._strides = tensor.shape, tensor.stride()
        self._device = tensor.device.type

    def tensor(self) -> Tensor:
        """The tensor as it was."""
        # Recipes call the same kernels as the forward pass, with the same dtypes, so autocast is
        # off.
        with torch.no_grad(), torch.autocast(self._device, enabled=False):
            value = self._made.value()
            if value.stride() == self._strides and value.shape == self._shape:
                return value
            result = torch.empty_strided(
                self._shape, self._strides, dtype=value.dtype, device=value.device
            )
            return result.copy_(value)


def unpack(packed: Kept | Handle) -> Tensor:
    """The tensor that a node's packed value stands for."""
    return packed.tensor() if isinstance(packed, Handle) else packed.value()
