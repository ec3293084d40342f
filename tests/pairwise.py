"""Combinations for tests whose axes are independent: every pair of values, not every product."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pytest

Pair = tuple[tuple[int, int], tuple[int, int]]
"""An axis and an index on it, and the same of a later axis."""
FIXTURES = ("engine", "every_engine", "kernels")
"""Axes that a fixture of conftest.py takes rather than the test itself."""


def all_pairs(*sizes: int, apart: Collection[Pair] = ()) -> list[tuple[int, ...]]:
    """Rows of indices, one below each size, in which any two of different axes meet.

    But for the pairs in `apart`, which never do. The same rows each time; few, though not the
    fewest there could be. A row begins with the first pair that has not met yet. Each further axis
    then takes the index that adds the most new pairs and, among equals, the one used least.
    """
    if not all(sizes):
        return []
    axes = range(len(sizes))
    unmet = {  # a dict rather than a set: its order is the same in every process
        pair: None
        for i, j in itertools.combinations(axes, 2)
        for a, b in itertools.product(range(sizes[i]), range(sizes[j]))
        if (pair := ((i, a), (j, b))) not in apart
    }
    uses = [[0] * size for size in sizes]

    def gain(row: dict[int, int], axis: int, index: int) -> tuple[bool, int, int]:
        pairs = [tuple(sorted([(axis, index), other])) for other in row.items()]
        allowed = not any(pair in apart for pair in pairs)
        return allowed, sum(pair in unmet for pair in pairs), -uses[axis][index]

    rows = []
    while unmet:
        row = dict(next(iter(unmet)))
        for axis in sorted(set(axes) - set(row), key=lambda axis: -sizes[axis]):
            row[axis] = max(range(sizes[axis]), key=functools.partial(gain, row, axis))
        for axis, index in row.items():
            uses[axis][index] += 1
        for pair in itertools.combinations(sorted(row.items()), 2):
            assert pair not in apart, "what must stay apart leaves nothing to choose"
            unmet.pop(pair, None)
        rows.append(tuple(row[axis] for axis in axes))
    return rows


def _param(value: Any) -> Any:
    """As a `pytest.param` with an id."""
    is_param = hasattr(value, "marks")
    return value if is_param else pytest.param(value, id=str(value).removeprefix("torch."))


def _named(names: tuple[str, ...], values: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Each value of an axis as one `pytest.param` an argument; a mapping's keys are the ids."""
    if isinstance(values, Mapping):
        values = [pytest.param(value, id=str(key)) for key, value in values.items()]
    if len(names) == 1:
        return [(_param(value),) for value in values]
    return [tuple(map(_param, of_names)) for of_names in values]


def pairwise(
    axes: Mapping[str, Iterable[Any]], apart: Collection[Mapping[str, Any]] = ()
) -> pytest.MarkDecorator:
    """`parametrize` over these axes, by argument name, in which every pair of values occurs.

    For axes that don't depend on each other. Where some do, such as the instruction set and the
    type, for which each kernel is compiled anew, one axis has their combinations: tuples, and a
    name such as "kernels,dtype". Of two axes the pairs are their product. `apart` has pairs that
    make no sense, each as {axis: value}.
    """
    names = [tuple(name.split(",")) for name in axes]
    values = [_named(*axis) for axis in zip(names, axes.values(), strict=True)]
    places = {name: place for place, name in enumerate(axes)}

    def index_of(name: str, value: Any) -> tuple[int, int]:
        at = places[name]
        return at, next(i for i, (param,) in enumerate(values[at]) if param.values == (value,))

    forbidden = {tuple(sorted(index_of(*named) for named in pair.items())) for pair in apart}
    rows = []
    for indices in all_pairs(*map(len, values), apart=forbidden):
        chosen = [of_axis[index] for of_axis, index in zip(values, indices, strict=True)]
        row = list(itertools.chain(*chosen))
        rows.append(
            pytest.param(
                *(param.values[0] for param in row),
                id="-".join(param.id for param in row),
                marks=[mark for param in row for mark in param.marks],
            )
        )
    arguments = tuple(itertools.chain(*names))
    return pytest.mark.parametrize(
        arguments, rows, indirect=[name for name in arguments if name in FIXTURES]
    )
