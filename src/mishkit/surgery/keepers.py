"""Who keeps what for the backward pass, and how much of it could be recomputed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..recompute.choice import Meter
from ..recompute.context import recompute_some
from ..recompute.model import suspended
from ._state import undisturbed
from .watch import Saved, Trace


@dataclass(frozen=True)
class Keeper:
    """The calls of one operator in one module, and the bytes that autograd keeps for them."""

    module: str
    """The path of the innermost enclosing module; empty for the model itself."""
    operator: str
    """The operator as autograd calls it, such as "native_batch_norm"."""
    nbytes: int
    """What the operator keeps. A storage that several operators keep counts for the first one."""
    recomputable: int
    """How many of these bytes `mishkit.lean` or `mishkit.recompute` would not keep."""


def keepers_of(
    model: nn.Module, trace: Trace, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Keeper, ...]:
    """Every byte that is kept, by its keeper, in the order of the forward pass.

    `trace` is that of a pass which does not recompute. The model runs once more with recomputation,
    in which autograd wants to keep the same tensors in the same order.
    """
    meter = Meter()
    alone = undisturbed(model, args, kwargs)
    with alone, suspended(), torch.enable_grad(), recompute_some(None, meter):
        model(*args, **kwargs)
    by_storage: dict[int, list[Saved]] = {}
    for saved in trace.saved:
        by_storage.setdefault(saved.storage, []).append(saved)
    kept: Counter[tuple[str, str]] = Counter()
    recomputable: Counter[tuple[str, str]] = Counter()
    for saves in by_storage.values():
        first = saves[0]
        place = first.module, trace.operators.get(first.node, "")
        kept[place] += first.nbytes
        # A storage is freed only if every operator that keeps it can do without it.
        spared = [meter.spared.get(saved.number, 0) for saved in saves]
        recomputable[place] += min(first.nbytes, *spared)
    return tuple(Keeper(*place, nbytes, recomputable[place]) for place, nbytes in kept.items())
