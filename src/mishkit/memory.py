"""Count the bytes that autograd keeps between the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ._torch_private import DisableTorchDispatch, FakeTensor, is_traceable_wrapper_subclass


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold a tensor's data, values first; an ordinary tensor is its own part.

    Nested, sparse and distributed tensors have no storage of their own. Opaque tensors expose no
    parts, so the list is empty for them.
    """
    if is_traceable_wrapper_subclass(tensor):
        inner = (getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
        return [part for t in inner if isinstance(t, Tensor) for part in parts_of(t)]
    if tensor.layout is torch.strided and not tensor.is_nested:
        return [tensor]
    names = _PARTS.get(tensor.layout, ())
    with DisableTorchDispatch(), torch.no_grad():
        alias = tensor.detach()
        return [getattr(alias, name)() for name in names]


_ROWS, _COLUMNS = (
    ("values", "crow_indices", "col_indices"),
    ("values", "ccol_indices", "row_indices"),
)
_PARTS = {
    torch.strided: ("values",),
    torch.sparse_coo: ("_values", "_indices"),
    torch.sparse_csr: _ROWS,
    torch.sparse_bsr: _ROWS,
    torch.sparse_csc: _COLUMNS,
    torch.sparse_bsc: _COLUMNS,
}


def has_data(tensor: Tensor) -> bool:
    """Whether the tensor has elements in memory; meta and fake tensors have only a shape."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def check_version(tensor: Tensor, version: int) -> None:
    """Raise RuntimeError, as autograd does, if a tensor was modified since it had this version."""
    if tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an "
            f"inplace operation: [{tensor.type()} of shape {[*tensor.shape]}] is at version "
            f"{tensor._version}; expected version {version} instead"
        )


def storages_of(tensor: Tensor) -> list[torch.UntypedStorage]:
    """The storages that hold a tensor's data; the storage of the values comes first."""
    try:
        return [part.untyped_storage() for part in parts_of(tensor)]
    except (NotImplementedError, RuntimeError):  # for example inside transforms
        return []


class KeptBytes:
    """Counts the bytes that autograd keeps for the backward pass, by distinct storage.

    A storage saved by several operators counts once, and in full even if only a part is used.
    Nested, sparse and distributed tensors are counted by their parts; opaque tensors (`to_mkldnn`)
    expose none and so count as nothing. Tensors without data count as those that they stand for: a
    network too large for this machine can be counted under
    ``torch._subclasses.FakeTensorMode()`` or on ``torch.device("meta")``. ``exclude`` lists tensors
    that exist anyway (parameters, buffers, the input):

        with KeptBytes(exclude=[*model.parameters(), x]) as kept:
            y = model(x)
        print(kept.total / len(x), "bytes a sample")
    """

    def __init__(self, exclude: Iterable[Tensor] = ()) -> None:
        self._excluded = [storage for tensor in exclude for storage in storages_of(tensor)]
        # Keyed by identity because fake and meta tensors have no address. Holding the storages
        # keeps their identities from being reused while we count.
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> KeptBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._hooks.__exit__(*exc)

    def _pack(self, tensor: Tensor) -> Tensor:
        self._storages.update({storage._cdata: storage for storage in storages_of(tensor)})
        # Detach: an output saved by its own node, as ReLU does, would otherwise never be freed.
        return tensor.detach()

    @property
    def storages(self) -> list[torch.UntypedStorage]:
        """The distinct storages kept, excluding empty ones and those in ``exclude``."""
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
