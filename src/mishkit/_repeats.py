"""Show rows of a table that differ only in block numbers as one: layer1.0–2.act ×3."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Numbers = tuple[tuple[int, ...], ...]
"""For each number in a name, the values that it takes, in rising order."""

_NUMBER = re.compile(r"\d+(?![\d.]*\s(?:[KMG]i)?B\b)")
"""A whole number in a text, unless it belongs to a count of bytes."""


@dataclass(frozen=True)
class Repeat(Generic[Item]):
    """Rows whose names differ only in numbers, for every combination of the numbers' values."""

    name: str
    """The common name, with ranges in place of the numbers that differ."""
    items: tuple[Item, ...]

    @property
    def times(self) -> str:
        """The number of rows, to put after the name; empty for a single row."""
        return f" ×{len(self.items)}" if len(self.items) > 1 else ""


def repeats(
    items: Iterable[Item], name_of: Callable[[Item], str], key_of: Callable[[Item], Hashable]
) -> list[Repeat[Item]]:
    """Collapse rows with equal keys whose names differ only in numbers.

    Rows are collapsed only if the common name stands for exactly these rows: 0.act and 1.act2 stay
    apart. Results are in the order of their first rows.
    """
    alike: dict[Hashable, list[Item]] = {}
    for item in items:
        alike.setdefault((masked(name_of(item)), key_of(item)), []).append(item)
    return [repeat for group in alike.values() for repeat in _collapsed(group, name_of)]


def _collapsed(group: Sequence[Item], name_of: Callable[[Item], str]) -> list[Repeat[Item]]:
    boxes: dict[Numbers, list[Item]] = {}
    for item in group:
        numbers = tuple((int(text),) for text in _NUMBER.findall(name_of(item)))
        boxes.setdefault(numbers, []).append(item)
    for place in reversed(range(len(next(iter(boxes))))):
        boxes = _joined(boxes, place)
    return [Repeat(_filled(name_of(rows[0]), box), tuple(rows)) for box, rows in boxes.items()]


def _joined(boxes: dict[Numbers, list[Item]], place: int) -> dict[Numbers, list[Item]]:
    """Join boxes that differ in only one number."""
    lines: dict[Numbers, list[Numbers]] = {}
    for box in boxes:
        lines.setdefault((*box[:place], *box[place + 1 :]), []).append(box)
    result = {}
    for line in lines.values():
        values = tuple(sorted({value for box in line for value in box[place]}))
        box = (*line[0][:place], values, *line[0][place + 1 :])
        result[box] = [row for part in line for row in boxes[part]]
    return result


def masked(text: str) -> str:
    """A text without its numbers, so that those of repeated blocks are equal."""
    return _NUMBER.sub("#", text)


def merged(texts: Sequence[str]) -> str:
    """One text for several that differ only in their numbers."""
    numbers = zip(*(map(int, _NUMBER.findall(text)) for text in texts), strict=True)
    return _filled(texts[0], tuple(tuple(sorted(set(values))) for values in numbers))


def _filled(text: str, numbers: Numbers) -> str:
    ranges = iter(numbers)
    return _NUMBER.sub(lambda number: _range(next(ranges)) or number[0], text)


def _range(values: Sequence[int]) -> str:
    """0–2,4 for the numbers 0, 1, 2 and 4; empty for a single number."""
    if len(values) == 1:
        return ""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
