"""Where nothing is kept that can be made again."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .._checkpoint import in_checkpoint
from .._torch_private import top_saved_tensor_hooks
from .handles import Handle, Hooks, Kept, Made, Source, unpack
from .recipes import Node, find

MOST_SUMS = 2
"""How many sums in a row may have to be made again for one tensor. Where each is made from the sum
before it, all of a residual network would hang on its first."""
LEAST_BYTES = 1024
"""What is smaller is kept: a handle takes memory too."""

_NOTES = "mishkit"
"""Where a node's metadata say, by the number of the output, who keeps or makes it."""


@contextmanager
def recompute() -> Iterator[None]:
    """Within it, forward passes keep nothing for the backward pass that can be made again cheaply.

    Between the forward and the backward pass, autograd keeps what operations ask for: a BatchNorm
    its input, an activation its input, the next convolution its input again. Three tensors are kept
    where one is enough, since the other two can be made from it in one pass over memory each::

        with mishkit.recompute():
            loss = criterion(model(images), labels)
        loss.backward()

    Outputs of normalisations, activations, products, sums, casts, dropouts, concatenations and
    views are dropped where what their node keeps is enough to make them again. Nothing else is run
    again: no convolution, no matrix product, no random number, no statistics. Gradients are the
    same, bit by bit. The model is not changed, and the backward pass may come later, elsewhere.

    Each thread has it for itself. Within `torch.utils.checkpoint`, which must see what is kept, it
    does nothing; the transforms of `torch.func` refuse to run within it. Other hooks on saved
    tensors that are active outside (`torch.autograd.graph.save_on_cpu`, `mishkit.KeptBytes`) get
    what is really kept.

    Notes
    -----
    A bias that is written over between the forward and the backward pass raises RuntimeError, as a
    weight does. A tensor is only freed if nobody else holds it; what `inplace=True` activations of
    torch write over can't be made again.
    """
    if in_checkpoint() or is_recomputing():
        yield
        return
    outside = _hooks_outside()
    with torch.autograd.graph.saved_tensors_hooks(_Packer(outside).pack, unpack):
        yield


def is_recomputing() -> bool:
    """Whether `recompute` is at work here: the innermost hooks on saved tensors are its own."""
    hooks = _hooks_outside()
    return hooks is not None and isinstance(getattr(hooks[0], "__self__", None), _Packer)


def _hooks_outside() -> Hooks | None:
    """The saved-tensor hooks that are active already, which ours hide."""
    return top_saved_tensor_hooks(True)  # type: ignore[no-any-return]


class _Packer:
    def __init__(self, outside: Hooks | None) -> None:
        self.outside = outside

    def pack(self, tensor: Tensor) -> Any:
        """What a node keeps instead of a tensor."""
        node = tensor.grad_fn
        if node is None or type(tensor) is not Tensor:
            return Kept(tensor, self.outside)
        number = tensor.output_nr
        if tensor.numel() * tensor.element_size() >= LEAST_BYTES:
            source = _source(node, number)
            if isinstance(source, Made):
                return Handle(source, tensor)
        kept = Kept(tensor, self.outside)
        _note(node, number, kept)
        base = tensor._base
        if base is not None and base.grad_fn is not None and self.outside is None:
            # All of its memory is kept anyway.
            kept.base = Kept(base)
            _note(base.grad_fn, base.output_nr, kept.base)
        return kept


def _source(node: Node, number: int) -> Source | None:
    """Who can give this output of a node; None if nobody can."""
    known = _noted(node, number)
    if known is not None:
        return known
    if (leaf := getattr(node, "variable", None)) is not None:
        return Kept(leaf)
    recipe = find(node)
    if recipe is None or (number and not recipe.outputs):
        return None
    inputs: list[Source] = []
    for place in recipe.inputs(node):
        before, output = node.next_functions[place]
        source = None if before is None else _source(before, output)
        if source is None:
            return None
        inputs.append(source)
    sums = recipe.sums + max((source.sums for source in (*inputs, *_behind(node))), default=0)
    if sums > MOST_SUMS:
        return None
    made = Made(node, number, recipe, inputs, sums)
    _note(node, number, made)
    return made


def _behind(node: Node) -> Iterator[Source]:
    """What may have to be made so that the node has what it keeps."""
    for before, output in node.next_functions:
        source = None if before is None else _noted(before, output)
        if source is not None:
            yield source


def _note(node: Node, number: int, source: Source) -> None:
    # Weak: what is kept must not outlive the nodes that keep it.
    node.metadata.setdefault(_NOTES, {})[number] = weakref.ref(source)


def _noted(node: Node, number: int) -> Source | None:
    reference = node.metadata.get(_NOTES, {}).get(number)
    return None if reference is None else reference()
