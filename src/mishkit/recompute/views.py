"""Tensors of which only views are kept.

To keep a view is to keep all memory of its base. One linear layer may make q, k and v, of which
autograd needs v alone, since rotary embeddings make new tensors of q and k. Then a copy of v takes
a third of the memory. But if other views of the base are kept as well, or if somebody holds it, a
copy would only take more. So it is decided when nobody else holds the base any more.
"""

from __future__ import annotations

import weakref

from torch import Tensor

from .handles import Hooks, Kept


class Views:
    """The views that are kept of one base."""

    def __init__(self, base: Tensor) -> None:
        self._base, self._nbytes = weakref.ref(base), base.nbytes
        self._kept: list[weakref.ref[Kept]] = []

    def add(self, kept: Kept) -> None:
        """Another view."""
        self._kept.append(weakref.ref(kept))

    def is_complete(self) -> bool:
        """Whether nobody else holds the base, or a view of it."""
        return self._base() is None

    def settle(self, outside: Hooks | None) -> tuple[list[Kept], int]:
        """Keep copies of the views if they are all that is needed of the base, and the smaller
        part; then let hooks outside pack what is kept. Returns those copied, and the bytes saved.
        """
        views = [kept for reference in self._kept if (kept := reference()) is not None]
        is_needed = any(kept.base is not None and kept.base.is_needed for kept in views)
        nbytes = sum(kept.nbytes for kept in views)
        copies: list[Kept] = []
        if self.is_complete() and not is_needed and 2 * nbytes <= self._nbytes:
            copies = [kept for kept in views if kept.copy()]
        if outside is not None:
            for kept in views:
                kept.hand_over(outside)
        return copies, self._nbytes - nbytes if len(copies) == len(views) else 0
