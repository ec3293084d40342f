"""Counting what autograd keeps between the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


class KeptBytes:
    """Counts the bytes that autograd keeps for backward, by distinct storage.

    A storage that several operators save counts once, whole, however small the part that is used.
    ``exclude`` names tensors that exist anyway (parameters, buffers, the input):

        with KeptBytes(exclude=[*model.parameters(), x]) as kept:
            y = model(x)
        print(kept.total / len(x), "bytes a sample")
    """

    def __init__(self, exclude: Iterable[Tensor] = ()) -> None:
        self._excluded = [tensor.untyped_storage() for tensor in exclude]
        # By identity, as fake tensors and those on meta have no address. The storages are held, so
        # that none is reused while counting.
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> KeptBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._hooks.__exit__(*exc)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage
        # Detached, or an output that its own node keeps, as ReLU's, would never be freed.
        return tensor.detach()

    @property
    def storages(self) -> list[torch.UntypedStorage]:
        """The distinct storages kept, without the excluded ones and the empty ones."""
        excluded = {storage._cdata for storage in self._excluded}
        return [
            storage
            for identity, storage in self._storages.items()
            if identity not in excluded and storage.nbytes()
        ]

    @property
    def total(self) -> int:
        """Bytes kept."""
        return sum(storage.nbytes() for storage in self.storages)
