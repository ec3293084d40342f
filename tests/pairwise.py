"""Combinations for tests whose axes are independent: every pair of values, not every product."""

from __future__ import annotations

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
    rows = []
    while unmet:
        row = dict(next(iter(unmet)))
        for axis in sorted(set(axes) - set(row), key=lambda axis: -sizes[axis]):

            def gain(index: int, axis: int = axis) -> tuple[int, int]:
                met = (tuple(sorted([(axis, index), other])) for other in row.items())
                return sum(pair in unmet for pair in met), -uses[axis][index]

            row[axis] = max(range(sizes[axis]), key=gain)
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


def pairwise(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """`parametrize` over these axes, by argument name, in which every pair of values occurs.

    For axes that don't interact. Where three of them meet in one place of the code, such as a
    kernel of its own for each function, type and instruction set, stack `parametrize` instead.
    """
    if len(axes) < 3:
        raise TypeError("pairs of two axes are their product: use parametrize")
    values = [_named(of_axis) for of_axis in axes.values()]
    rows = []
    for indices in all_pairs(*map(len, values)):
        row = [of_axis[index] for of_axis, index in zip(values, indices, strict=True)]
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
