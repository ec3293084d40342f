"""Which tensors a model drops, where it need not drop all that it can."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple


class Kind(NamedTuple):
    """Tensors of which a byte costs about the same to recompute."""

    is_product: bool
    """Whether they come from a matrix product, which runs again."""
    node: str
    """The name of the node whose output it is."""
    digits: int
    """The number of binary digits of its size in bytes."""


@dataclass(frozen=True)
class Choice:
    """All tensors of some kinds, and of one more kind the first in each forward pass."""

    whole: frozenset[Kind]
    partly: Kind | None = None
    allowance: int = 0
    """The most bytes to drop of the kind `partly`."""

    @property
    def products(self) -> bool:
        """Whether matrix products may run again."""
        kinds = self.whole if self.partly is None else self.whole | {self.partly}
        return any(kind.is_product for kind in kinds)


@dataclass
class Meter:
    """What was dropped, and what it took to recompute that."""

    products: bool = False
    """Whether matrix products may run again."""
    nbytes: dict[Kind, int] = field(default_factory=lambda: defaultdict(int))
    seconds: dict[Kind, float] = field(default_factory=lambda: defaultdict(float))
    count: int = 0
    """How many tensors autograd wanted to keep so far."""
    spared: dict[int, int] = field(default_factory=dict)
    """Of the tensors with these numbers: how many bytes are not kept."""
