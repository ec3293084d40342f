"""Which tensors a model drops, where it need not drop all that it can."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .recipes import Node

Kind = tuple[str, int]
"""The name of a node, and the number of binary digits of its output's size in bytes. To recompute
a byte costs about the same in all tensors of a kind.
"""


def kind_of(node: Node, nbytes: int) -> Kind:
    """The kind of a node's output."""
    return node.name(), nbytes.bit_length()


@dataclass(frozen=True)
class Choice:
    """All tensors of some kinds, and of one more kind the first in each forward pass."""

    whole: frozenset[Kind]
    partly: Kind | None = None
    allowance: int = 0
    """The most bytes to drop of the kind `partly`."""


@dataclass
class Meter:
    """What was dropped, and what it took to recompute that."""

    nbytes: dict[Kind, int] = field(default_factory=lambda: defaultdict(int))
    seconds: dict[Kind, float] = field(default_factory=lambda: defaultdict(float))
    count: int = 0
    """How many tensors autograd wanted to keep so far."""
    spared: dict[int, int] = field(default_factory=dict)
    """Of the tensors with these numbers: how many bytes are not kept."""
