"""What `swap` and `unswap` replaced, and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ._columns import aligned


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
    """What was replaced where, in the model's order; `print` shows it as a table."""

    unused: tuple[Any, ...]
    """The keys of rules that matched no site."""
    left: dict[str, str]
    """The sites that a rule is for but that do something else, with the reasons: a module that is
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

    def __str__(self) -> str:
        rows = [("site", "old", "new"), *((one.name, one.old, one.new) for one in self)]
        lines = aligned(rows) if self else []
        count = f"{len(self)} site{'' if len(self) == 1 else 's'} replaced"
        if self.unused:
            count += f"; none found for {', '.join(_shown(key) for key in self.unused)}"
        left = [f"{name} is left: {reason}" for name, reason in self.left.items()]
        return "\n".join([*lines, *left, count])


def _shown(key: Any) -> str:
    return key.__name__ if isinstance(key, type) else repr(key)
