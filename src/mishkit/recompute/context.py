"""The context manager that drops saved tensors which can be recomputed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .._checkpoint import in_checkpoint
from .._torch_private import FakeTensor, top_saved_tensor_hooks
from .choice import Choice, Meter
from .handles import Bits, Handle, Hooks, Kept, Leaf, Made, Source, bits_of, unpack
from .recipes import LEAF, Node, find, recipe
from .views import Views

MOST_BASES = 8
"""Of so many tensors at most that only views are kept of, it is watched whether others need them.
"""
MOST_SUMS = 2
"""How many sums in a row may have to be recomputed for one tensor. If each could be made from the
sum before it, a whole residual network would depend on its first sum.
"""
MOST_PRODUCTS = 1
"""The same for matrix products, where a budget has these run again."""
LEAST_BYTES = 4096
"""Smaller tensors are kept: a handle takes memory too."""
LEAST_MASK = 16384
"""Smaller masks are kept: packing them takes time, and there are many small tensors to look at."""

_NOTE = "mishkit"
"""With an output's number, the key in a node's metadata of the object that keeps or makes it."""


@contextmanager
def recompute() -> Iterator[None]:
    """Within this context, forward passes save nothing that can be recomputed cheaply in backward.

    Between the forward and the backward pass, autograd keeps whatever operations ask for: a
    BatchNorm saves its input, an activation saves its input, and so does the next convolution. That
    is three tensors where one would do, since the other two can be computed from it in one pass
    over memory each::

        with mishkit.recompute():
            loss = criterion(model(images), labels)
        loss.backward()

    The outputs of normalisations, activations, products, sums, casts, dropouts, concatenations and
    views are dropped if what their node keeps is enough to compute them again. Masks, such as those
    of dropout, are kept in one bit per element. If the smaller part of a tensor is all that is
    needed of it, only that part is kept: v, for example, where q and k have been rotated and one
    linear layer made all three. Nothing else is rerun: no convolution, no matrix product, no random
    numbers, no statistics. Gradients are bitwise identical. The model is not changed, and the
    backward pass may run later and outside the context.

    The setting is per thread. It does nothing inside `torch.utils.checkpoint`, which must see what
    is saved, and the transforms of `torch.func` refuse to run inside it. Other saved-tensor hooks
    that are active outside (`torch.autograd.graph.save_on_cpu`, `mishkit.KeptBytes`) receive the
    tensors that are really kept.

    To have the outputs of your own autograd functions recomputed, register a recipe with
    `mishkit.recompute.recipe`.

    Notes
    -----
    Overwriting a bias or an embedding's weight between the forward and the backward pass raises
    RuntimeError, as overwriting other weights does. A tensor is freed only if nobody else holds it.
    A tensor that one of torch's ``inplace=True`` activations overwrites can't be recomputed.
    """
    with recompute_some(None):
        yield


recompute.recipe = recipe  # type: ignore[attr-defined]


@contextmanager
def recompute_some(choice: Choice | None, meter: Meter | None = None) -> Iterator[None]:
    """`recompute`, but dropping only what is chosen, and measuring what that takes."""
    if in_checkpoint() or is_recomputing():
        yield
        return
    outside = _hooks_outside()
    packer = _Packer(outside, choice) if meter is None else _Metered(outside, choice, meter)
    with torch.autograd.graph.saved_tensors_hooks(packer.pack, unpack):
        yield
        packer.end()


def is_recomputing() -> bool:
    """Whether `recompute` is at work here: the innermost hooks on saved tensors are its own."""
    hooks = _hooks_outside()
    return hooks is not None and isinstance(getattr(hooks[0], "__self__", None), _Packer)


def _hooks_outside() -> Hooks | None:
    """The saved-tensor hooks that are already active, which ours hide."""
    return top_saved_tensor_hooks(True)  # type: ignore[no-any-return]


_PLAIN = frozenset((Tensor, FakeTensor))
_STRIDED = torch.strided
_TRANSPOSES = frozenset(("TBackward0", "TransposeBackward0", "PermuteBackward0"))


class _Packer:
    """Python code that runs between two convolutions finds nothing of its own in the processor's
    caches, so every line here costs a microsecond or more.
    """

    def __init__(self, outside: Hooks | None, choice: Choice | None = None) -> None:
        self.outside, self.choice = outside, choice
        self.left = choice.allowance if choice else 0
        self.products = choice is not None and choice.products
        self.last: Handle | None = None
        self.views: dict[int, Views] = {}
        """By the id of the base: views that are kept of bases which may have other uses."""
        self.no_masks: dict[int, weakref.ref[Tensor]] = {}
        """By their ids: tensors that are no masks, as the angles of rotary embeddings, which every
        layer saves. They, and views of them, need no second look.
        """

    def pack(self, tensor: Tensor) -> Leaf | Bits | Handle:
        """What a node keeps in place of a tensor."""
        if self.views:
            self.settle_complete()
        node, outside = tensor.grad_fn, self.outside
        if node is None:
            if not tensor.requires_grad and tensor.nbytes >= LEAST_MASK:
                bits = self.bits_of(tensor)
                if bits is not None:
                    return bits
            return Leaf(tensor) if outside is None else Kept(tensor, outside)
        if not _is_plain(tensor):
            return Kept(tensor, outside)
        base = tensor._base
        if base is not None:
            return self.packed_view(tensor, base)
        number = tensor.output_nr
        source = _source(node, number, self.products)
        if type(source) is Made and tensor.nbytes >= LEAST_BYTES and self.drops(source, tensor):
            return self.handle(source, tensor)
        kept = Kept(tensor, outside)
        _note(node, number, kept)
        if self.views and id(tensor) in self.views:  # the base itself is kept, too
            self.settle(id(tensor))
        return kept

    def handle(self, made: Made, tensor: Tensor) -> Handle:
        """The handle of a tensor that is dropped; the last one again if that is of the same tensor,
        as where several linear layers have one input.
        """
        last = self.last
        if last is None or last.made is not made or last.shape != tensor.shape:
            self.last = last = Handle(made, tensor)
        elif last.strides != tensor.stride():
            return Handle(made, tensor)
        return last

    def bits_of(self, tensor: Tensor) -> Bits | None:
        """The tensor in one bit per element, if it is a mask."""
        base = tensor._base
        whole = tensor if base is None else base
        known = self.no_masks.get(id(whole))
        if known is not None and known() is whole:
            return None
        bits = bits_of(tensor, self.outside) if _is_plain(tensor) else None
        if bits is None:
            self.no_masks[id(whole)] = weakref.ref(whole)
        return bits

    def packed_view(self, tensor: Tensor, base: Tensor) -> Leaf | Handle:
        """What is kept in place of a view. To keep a view is to keep all memory of its base."""
        node, outside = base.grad_fn, self.outside
        if node is None:
            if outside is not None:
                return Kept(tensor, outside)
            # Detached, in case it is an output of the node that saves it, which no transpose is.
            is_transpose = tensor.grad_fn.name() in _TRANSPOSES  # type: ignore[union-attr]
            return Leaf(tensor if is_transpose else tensor.detach())
        source = _source(node, base.output_nr, self.products)
        if (
            type(source) is Made
            and tensor.nbytes >= LEAST_BYTES
            and (view := self.view_of(source, tensor, base)) is not None
            and self.drops(source, base)
        ):
            return self.handle(view, tensor)
        kept = Kept(tensor)  # hooks outside get it as soon as it is known what to keep
        is_first = type(source) is not Kept
        if outside is not None:
            _note(tensor.grad_fn, tensor.output_nr, kept)
        elif is_first:
            kept.base = Kept(base)
            _note(node, base.output_nr, kept.base)
        if tensor.nbytes + LEAST_BYTES <= base.nbytes and (is_first or id(base) in self.views):
            self.wait(kept, base)
        elif outside is not None:
            kept.hand_over(outside)
        return kept

    def wait(self, kept: Kept, base: Tensor) -> None:
        """Decide how to keep a view when it is known what else is kept of its base."""
        if id(base) not in self.views:
            if len(self.views) == MOST_BASES:
                self.settle(next(iter(self.views)))
            self.views[id(base)] = Views(base)
        self.views[id(base)].add(kept)

    def settle(self, base: int) -> tuple[list[Kept], int]:
        """Decide for the views of the base with this id; see `Views.settle`."""
        return self.views.pop(base).settle(self.outside)

    def settle_complete(self) -> None:
        """Decide for the views of bases that nobody else holds any more."""
        for base in [base for base, views in self.views.items() if views.is_complete()]:
            self.settle(base)

    def end(self) -> None:
        """Decide for all views: the forward pass is over."""
        for base in list(self.views):
            self.settle(base)

    def view_of(self, source: Made, tensor: Tensor, base: Tensor) -> Made | None:
        """What makes a view, given what makes its base."""
        if tensor.numel() == base.numel() and tensor.is_contiguous() and base.is_contiguous():
            return source  # the same elements, reshaped
        view = _source(tensor.grad_fn, tensor.output_nr, self.products)
        return view if type(view) is Made else None

    def drops(self, made: Made, tensor: Tensor) -> bool:
        """Whether to drop this tensor."""
        if made.is_dropped:
            return True
        if self.choice is not None:
            kind = made.kind(tensor.nbytes)
            if kind == self.choice.partly and tensor.nbytes <= self.left:
                self.left -= tensor.nbytes
            elif kind not in self.choice.whole:
                return False
        made.is_dropped = True
        return True


class _Metered(_Packer):
    """Also measures what is dropped, and what it takes to recompute that."""

    def __init__(self, outside: Hooks | None, choice: Choice | None, meter: Meter) -> None:
        super().__init__(outside, choice)
        self.meter = meter
        self.products = self.products or meter.products
        self.numbers: dict[Kept, int] = {}
        """The numbers of views of which it is not decided yet how they are kept."""

    def pack(self, tensor: Tensor) -> Leaf | Bits | Handle:
        """What a node keeps in place of a tensor."""
        packed = super().pack(tensor)
        if type(packed) is Handle:
            self.meter.spared[self.meter.count] = tensor.untyped_storage().nbytes()
        elif type(packed) is Bits:
            self.meter.spared[self.meter.count] = tensor.nbytes - packed.nbytes
        self.meter.count += 1
        return packed

    def wait(self, kept: Kept, base: Tensor) -> None:
        """Decide how to keep a view when it is known what else is kept of its base."""
        self.numbers[kept] = self.meter.count
        super().wait(kept, base)

    def settle(self, base: int) -> tuple[list[Kept], int]:
        """Decide for the views of the base with this id; see `Views.settle`."""
        copies, saved = super().settle(base)
        self.meter.spared.update((self.numbers[kept], saved) for kept in copies)
        return copies, saved

    def drops(self, made: Made, tensor: Tensor) -> bool:
        """Whether to drop this tensor."""
        is_new = not made.is_dropped
        dropped = super().drops(made, tensor)
        if dropped and is_new:
            kind = made.kind(tensor.nbytes)
            self.meter.nbytes[kind] += tensor.nbytes
            made.seconds = self.meter.seconds, kind
        return dropped


def _is_plain(tensor: Tensor) -> bool:
    """Not a subclass, unless it stands for a tensor that is none, and not sparse."""
    return type(tensor) in _PLAIN and tensor.layout is _STRIDED


def _source(node: Node | None, number: int, with_products: bool) -> Source | None:
    """The object that can provide this output of a node; None if there is none."""
    if node is None:
        return None
    known = _noted(node, number)
    if known is not None:
        return known
    recipe = find(node)
    if recipe is None:
        return None
    if recipe is LEAF:
        return Leaf(node.variable)
    if (number and not recipe.outputs) or (recipe.is_product and not with_products):
        return None
    inputs: list[Source] = []
    for place in recipe.inputs(node):
        before, output = node.next_functions[place]
        source = _source(before, output, with_products)
        if source is None:
            return None
        if type(source) is Kept:
            source.is_needed = True
        inputs.append(source)
    needed: list[Source] = [*inputs]
    # The tensors that this node itself keeps may have to be recomputed, too.
    for before, output in node.next_functions:
        behind = None if before is None else _noted(before, output)
        if behind is not None:
            needed.append(behind)
    sums = max((source.sums for source in needed), default=0) + recipe.sums
    products = max((source.products for source in needed), default=0) + recipe.is_product
    # Sums of products are kept: the products before them can then be recomputed from a sum.
    if sums > MOST_SUMS or products > MOST_PRODUCTS or (recipe.sums and products):
        return None
    made = Made(node, number, recipe, inputs, sums, products)
    _note(node, number, made)
    return made


def _note(node: Node, number: int, source: Source) -> None:
    # A weak reference: what is kept must not outlive the nodes that keep it.
    node.metadata[_NOTE, number] = weakref.ref(source)


def _noted(node: Node, number: int) -> Source | None:
    reference = node.metadata.get((_NOTE, number))
    return None if reference is None else reference()
