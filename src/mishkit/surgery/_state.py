"""Restore a model to what it was, whatever running it has changed."""

from __future__ import annotations

import functools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .._torch_private import TorchDispatchMode
from ..memory import has_data, parts_of, storages_of

Storage = int
"""The address of a live storage, used to identify it."""


def storage_of(tensor: Tensor) -> Storage:
    """The storage of a tensor's values; 0 for tensors that expose none, such as opaque ones."""
    storages = storages_of(tensor)
    return storages[0]._cdata if storages else 0


Region = tuple[Any, ...]
"""Which numbers a tensor refers to: storage, offset, sizes, strides and dtype of its values."""


def region_of(tensor: Tensor) -> Region:
    """Which numbers a tensor refers to; an opaque tensor equals no other."""
    storage = storage_of(tensor)
    if not storage:
        return storage, object()
    values = parts_of(tensor)[0]
    where = storage, values.storage_offset()
    return (*where, values.shape, values.stride(), values.dtype)


def written_by(operator: Any) -> set[str]:
    """The names of the arguments that an operator writes to."""
    arguments = operator._schema.arguments
    written = {a.name for a in arguments if a.alias_info and a.alias_info.is_write}
    # Batch norm does not declare that it writes its statistics.
    return written | {a.name for a in arguments if a.name in ("running_mean", "running_var")}


def arguments_of(operator: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of an operator's call, by name."""
    names = (argument.name for argument in operator._schema.arguments)
    return {**dict(zip(names, args, strict=False)), **kwargs}


@contextmanager
def undisturbed(model: nn.Module, *inputs: Any) -> Iterator[None]:
    """Undo at exit whatever running the model changes in it or in its inputs.

    Restored are the values of parameters, buffers and other tensors that the modules hold, which
    tensors these are, module attributes and their contents, and the random number generators of
    torch, Python and numpy. The contents of threads, trainers and loggers do not count as state of
    the model.
    """
    held = _Held(model, inputs)
    with torch.random.fork_rng(devices=held.devices), random_numbers_kept(), held.copies:
        try:
            yield
        finally:
            held.copies.stop()
            held.put_back()


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Restore the generators of Python and numpy at exit."""
    state = random.getstate()
    numpy = sys.modules.get("numpy")
    of_numpy = numpy.random.get_state() if numpy else None
    try:
        yield
    finally:
        random.setstate(state)
        if numpy:
            numpy.random.set_state(of_numpy)


class _Copies(TorchDispatchMode):
    """Copies tensors just before they are written to: copying them all would double the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[Storage, list[Tensor]] = {}
        self.pairs: list[tuple[Tensor, Tensor]] = []
        """Pairs of a tensor and a copy of its values."""

    def watch(self, tensor: Tensor) -> None:
        """Copy this tensor before it is first written to."""
        self.watched.setdefault(storage_of(tensor), []).append(tensor)

    def copy(self, tensors: list[Tensor]) -> None:
        """Copy these tensors now."""
        self.pairs += [(tensor, tensor.clone()) for tensor in tensors]

    def stop(self) -> None:
        """Stop watching."""
        self.watched.clear()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        written = written_by(operator) if self.watched else ()
        if written:
            values = arguments_of(operator, args, kwargs)
            for name in written:
                value = values.get(name)
                for tensor in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(tensor, Tensor):
                        self.copy(self.watched.pop(storage_of(tensor), []))
        return operator(*args, **kwargs)


class _Held:
    """Everything that a model holds, as it is now."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        self.copies = _Copies()
        self.undo: list[Callable[[], object]] = []
        cuda: set[int] = set()
        met: dict[int, Any] = {}
        todo: list[Any] = [model, inputs]
        # Custom kernels may write to buffers without declaring it.
        buffers = {id(buffer) for buffer in model.buffers()}
        while todo:
            value = todo.pop()
            if id(value) in met:
                continue
            met[id(value)] = value
            if isinstance(value, Tensor):
                self._note_tensor(value, now=id(value) in buffers)
                if value.is_leaf and value.grad is not None:
                    todo.append(value.grad)
                if value.device.type == "cuda":
                    cuda.add(value.device.index or 0)
            else:
                todo += self._note(value)
        self.devices = sorted(cuda)

    def put_back(self) -> None:
        """Restore everything."""
        for undo in reversed(self.undo):
            undo()
        for tensor, was in self.copies.pairs:
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                if not torch.equal(tensor, was):
                    tensor.copy_(was)

    def _note_tensor(self, tensor: Tensor, now: bool) -> None:
        alias = tensor.detach()  # the alias stays where it is if `tensor.data` is replaced
        for part in parts_of(alias) if storage_of(alias) else ():
            if not has_data(part):
                continue
            if now:
                self.copies.copy([part])
            else:
                self.copies.watch(part)
        if not tensor.is_leaf:
            return
        wants_grad, grad = tensor.requires_grad, tensor.grad
        where = region_of(alias)

        def undo() -> None:
            if not tensor.is_leaf:  # something with a gradient was written to it
                tensor.detach_()
            if where[0] and region_of(tensor) != where:
                tensor.data = alias
            if tensor.requires_grad != wants_grad:
                tensor.requires_grad_(wants_grad)
            if tensor.grad is not grad:
                tensor.grad = grad

        self.undo.append(undo)

    def _note(self, value: Any) -> list[Any]:
        """Record what this value holds; returns the values inside that remain to be visited."""
        if isinstance(value, dict):
            items = dict(value)
            self.undo.append(lambda: _refill_mapping(value, items))
            return list(items.values())
        if isinstance(value, (list, deque)):
            elements = list(value)
            self.undo.append(lambda: _refill(value, elements))
            return elements
        if isinstance(value, set):
            members = set(value)
            self.undo.append(lambda: _refill_set(value, members))
            return list(members)
        if isinstance(value, (tuple, frozenset)):
            return list(value)
        if isinstance(value, FunctionType):  # for example a hook
            return self._note_closure(value)
        if isinstance(value, MethodType):
            return [value.__self__]
        if isinstance(value, functools.partial):
            return [value.func, value.args, value.keywords]
        if isinstance(value, torch.Generator):
            state = value.get_state()
            self.undo.append(lambda: value.set_state(state))
        elif isinstance(value, random.Random):
            drawn = value.getstate()
            self.undo.append(lambda: value.setstate(drawn))
        elif type(value).__module__.partition(".")[0] == "numpy":
            self._note_numpy(value)
        elif isinstance(value, nn.Module) or (
            hasattr(value, "__dict__")
            and not isinstance(value, (type, ModuleType))
            and type(value).__module__.partition(".")[0] not in _SURROUNDINGS
        ):
            return [vars(value)]
        return []

    def _note_closure(self, function: FunctionType) -> list[Any]:
        contents = []
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # the cell is still empty
                continue
            contents.append(content)

            def undo(cell: Any = cell, content: Any = content) -> None:
                if cell.cell_contents is not content:
                    cell.cell_contents = content

            self.undo.append(undo)
        return contents

    def _note_numpy(self, value: Any) -> None:
        numpy = sys.modules["numpy"]
        if isinstance(value, numpy.ndarray) and value.flags.writeable:
            was = value.copy()
            self.undo.append(lambda: numpy.copyto(value, was))
        elif isinstance(value, numpy.random.RandomState):
            state = value.get_state()
            self.undo.append(lambda: value.set_state(state))
        elif isinstance(value, numpy.random.Generator):
            bits, drawn = value.bit_generator, value.bit_generator.state
            self.undo.append(lambda: setattr(bits, "state", drawn))


_SURROUNDINGS = frozenset(
    (
        *("asyncio", "concurrent", "logging", "multiprocessing", "queue", "threading", "weakref"),
        *("lightning", "lightning_fabric", "pytorch_lightning", "torch", "unittest"),
    )
)
"""Packages whose objects are not state of a model, although its modules may refer to them."""


def _refill_mapping(mapping: dict[Any, Any], items: dict[Any, Any]) -> None:
    # Compared by identity: tensors and arrays have no plain equality.
    same = len(mapping) == len(items) and all(
        a is b and mapping[a] is items[b] for a, b in zip(mapping, items, strict=True)
    )
    if not same:
        mapping.clear()
        mapping.update(items)


def _refill(sequence: list[Any] | deque[Any], elements: list[Any]) -> None:
    same = len(sequence) == len(elements) and all(
        a is b for a, b in zip(sequence, elements, strict=True)
    )
    if not same:
        sequence.clear()
        sequence.extend(elements)


def _refill_set(current: set[Any], members: set[Any]) -> None:
    if current != members:
        current.clear()
        current.update(members)
