"""What `swap` and `unswap` replaced, and where."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from .._html import html_block, html_paragraph, html_table
from .._repeats import repeats
from ._columns import aligned

MOST = 10
"""How many rows a notebook shows before the others are folded away."""


@dataclass(frozen=True)
class Replacement:
    """One activation that replaced another."""

    name: str
    """The path of a submodule or attribute, or the name of an ONNX node."""
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.name}: {self.old} -> {self.new}"


class Replacements(list[Replacement]):
    """What was replaced where, in the model's order; ``print`` and notebooks show it as a table."""

    unused: tuple[Any, ...]
    """The keys of rules that matched no site."""
    left: dict[str, str]
    """The sites that a rule matches but that do something else, with the reasons: a module that is
    parametrized or whose `forward` was replaced, ONNX nodes whose values are used elsewhere too.
    """

    def __init__(
        self,
        found: Iterable[Replacement] = (),
        unused: Iterable[Any] = (),
        left: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(found)
        self.unused = tuple(unused)
        self.left = dict(left or {})

    def __repr__(self) -> str:
        kinds = Counter((site.old, site.new) for site in self)
        changes = ", ".join(f"{old} → {new} ×{count}" for (old, new), count in kinds.items())
        counts = [
            f"{len(self.left)} left" if self.left else "",
            f"{len(self.unused)} unused" if self.unused else "",
        ]
        return f"<Replacements: {'; '.join(filter(None, [changes or 'none', *counts]))}>"

    def __str__(self) -> str:
        lines = aligned([("site", "old", "new"), *self._cells()]) if self else []
        return "\n".join([*lines, *self._left(), self._count()])

    def _repr_html_(self) -> str:
        rows = [tuple(map(escape, cells)) for cells in self._cells()]
        parts = [html_paragraph(self._count(), strong=True)]
        if rows:
            parts.append(html_table(("site", "old", "new"), rows, most=MOST))
        return html_block(*parts, *map(html_paragraph, self._left()))

    def to_json(self, indent: int | None = 2) -> str:
        """As JSON: ``replaced``, a list with ``name``, ``old`` and ``new``; ``unused``, the keys of
        rules that matched no site; ``left``, the sites that were left with the reasons.
        """
        plain = {
            "replaced": [dataclasses.asdict(site) for site in self],
            "unused": [_shown(key) for key in self.unused],
            "left": self.left,
        }
        return json.dumps(plain, indent=indent, ensure_ascii=False)

    def _cells(self) -> list[tuple[str, str, str]]:
        """Repeated blocks share a row."""
        rows = repeats(self, lambda site: site.name, lambda site: (site.old, site.new))
        return [(row.name + row.times, row.items[0].old, row.items[0].new) for row in rows]

    def _count(self) -> str:
        count = f"{len(self)} site{'' if len(self) == 1 else 's'} replaced"
        if self.unused:
            count += f"; none found for {', '.join(_shown(key) for key in self.unused)}"
        return count

    def _left(self) -> list[str]:
        return [f"{name} is left: {reason}" for name, reason in self.left.items()]


def _shown(key: Any) -> str:
    return key.__name__ if isinstance(key, type) else repr(key)
