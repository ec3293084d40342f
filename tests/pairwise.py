"""Combinations for tests whose axes are independent: every pair of values, not every product."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

FIXTURES = ("engine", "every_engine", "kernels")
"""Axes that a fixture of conftest.py takes rather than the test itself."""


def all_pairs(*sizes: int) -> list[tuple[int, ...]]:
    """Rows of indices, one index below each size, in which any two of different axes meet.

    The same rows each time; few, though not the fewest there could be. A row begins with the first
    pair that has not met yet. Each further axis then takes the index that adds the most new pairs
    and, among equals, the one that was used least.
    """
    axes = range(len(sizes))
    unmet = {  # a dict rather than a set: its order is the same in every process
        ((i, a), (j, b)): None
        for i, j in itertools.combinations(axes, 2)
        for a, b in itertools.product(range(sizes[i]), range(sizes[j]))
    }
    uses = [[0] * size for size in sizes]

    def gain(row: dict[int, int], axis: int, index: int) -> tuple[int, int]:
        met = (tuple(sorted([(axis, index), other])) for other in row.items())
        return sum(pair in unmet for pair in met), -uses[axis][index]

    rows = []
    while unmet:
        row = dict(next(iter(unmet)))
        for axis in sorted(set(axes) - set(row), key=lambda axis: -sizes[axis]):
            row[axis] = max(range(sizes[axis]), key=functools.partial(gain, row, axis))
        for axis, index in row.items():
            uses[axis][index] += 1
        for pair in itertools.combinations(sorted(row.items()), 2):
            unmet.pop(pair, None)
        rows.append(tuple(row[axis] for axis in axes))
    return rows


def _named(values: Iterable[Any]) -> list[Any]:
    """Each as a `pytest.param` with an id; a mapping's keys are the ids."""
    if isinstance(values, Mapping):
        return [pytest.param(value, id=str(name)) for name, value in values.items()]
    return [
        value
        if hasattr(value, "marks")
        else pytest.param(value, id=str(value).removeprefix("torch."))
        for value in values
    ]


def pairwise(*together: tuple[str, ...], **axes: Iterable[Any]) -> pytest.MarkDecorator:
    """`parametrize` over these axes, by argument name, in which every pair of values occurs.

    For axes that don't depend on each other. Of axes that do, such as the instruction set and the
    type, for which each kernel is compiled anew, the names are given in `together`: they count as
    one axis, which has all their combinations.
    """
    groups = [*together, *((name,) for name in axes if not any(name in g for g in together))]
    if len(groups) < 3:
        raise TypeError("pairs of two axes are their product: use parametrize")
    combinations = [
        list(itertools.product(*(_named(axes[name]) for name in group))) for group in groups
    ]
    rows = []
    for indices in all_pairs(*map(len, combinations)):
        chosen = [of_group[index] for of_group, index in zip(combinations, indices, strict=True)]
        by_name = dict(
            zip(itertools.chain(*groups), itertools.chain(*chosen), strict=True)  # each one once
        )
        row = [by_name[name] for name in axes]
        rows.append(
            pytest.param(
                *(param.values[0] for param in row),
                id="-".join(param.id for param in row),
                marks=[mark for param in row for mark in param.marks],
            )
        )
    return pytest.mark.parametrize(
        tuple(axes), rows, indirect=[name for name in axes if name in FIXTURES]
    )
