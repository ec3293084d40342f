"""Counting what autograd keeps by walking its graph, without any hook."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def kept_in_graph(model: nn.Module, *inputs: Any, **kwargs: Any) -> int:
    """Bytes of the distinct storages in the graph of a forward pass, but for those of parameters,
    buffers and inputs; buffers are put back."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    given = [*model.parameters(), *model.buffers(), *_tensors((inputs, kwargs))]
    known = {tensor.untyped_storage()._cdata for tensor in given}
    with torch.random.fork_rng():
        output = model(*inputs, **kwargs)
    storages: dict[int, torch.UntypedStorage] = {}
    todo = [tensor.grad_fn for tensor in _tensors(output)]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for tensor in _saved(node):
            storage = tensor.untyped_storage()
            if storage._cdata not in known and storage.nbytes():
                storages[storage._cdata] = storage
        todo += [function for function, _ in node.next_functions]
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return sum(storage.nbytes() for storage in storages.values())


def _saved(node: Any) -> Iterator[Tensor]:
    for name in dir(node):
        if name.startswith("_saved_"):
            try:
                value = getattr(node, name)
            except RuntimeError as error:  # an output of an in-place operator and the like
                raise AssertionError(f"{node.name()}.{name}") from error
            yield from _tensors(value)
    yield from _tensors(getattr(node, "saved_tensors", ()))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
