"""The choice of combinations: every pair occurs, in few rows, the same ones each time."""

from __future__ import annotations

import itertools

import pytest
import torch
from pairwise import all_pairs, pairwise


@pytest.mark.parametrize(
    "sizes", [(2, 2, 2), (5, 4, 33), (3, 1, 7), (5, 25, 4, 2, 6), (13, 4, 3, 2, 2, 2, 9)], ids=str
)
def test_every_pair_meets(sizes: tuple[int, ...]) -> None:
    rows = all_pairs(*sizes)
    for (i, first), (j, second) in itertools.combinations(enumerate(sizes), 2):
        met = {(row[i], row[j]) for row in rows}
        assert met == set(itertools.product(range(first), range(second)))
    least = max(a * b for a, b in itertools.combinations(sizes, 2))
    assert least <= len(rows) == len(set(rows)) <= 1.5 * least + 2
    assert rows == all_pairs(*sizes)


def test_nothing_to_choose_from_gives_no_rows() -> None:
    assert all_pairs(3, 0, 0) == []


def test_rows_become_readable_parameters() -> None:
    skipped = pytest.param(3, id="three", marks=pytest.mark.skip)
    mark = pairwise(
        number=[1, skipped], dtype=[torch.float32], options={"plain": {}, "inplace": {"i": 1}}
    ).mark
    names, rows = mark.args
    assert names == ("number", "dtype", "options") and mark.kwargs == {"indirect": []}
    ids = {row.id: row for row in rows}
    assert set(ids) == {
        "1-float32-plain", "1-float32-inplace", "three-float32-plain", "three-float32-inplace"
    }  # fmt: skip
    row = ids["three-float32-inplace"]
    assert row.values == (3, torch.float32, {"i": 1}) and [m.name for m in row.marks] == ["skip"]
    assert pairwise(kernels=[1], b=[2], c=[3]).mark.kwargs == {"indirect": ["kernels"]}


def test_axes_together_are_one_axis() -> None:
    axes = {"a": [1, 2], "b": [1, 2, 3], "c": [1, 2], "d": [1, 2, 3]}
    rows = [row.values for row in pairwise(("d", "a"), **axes).mark.args[1]]
    for c in axes["c"]:
        met = {(a, d) for a, _, of_c, d in rows if of_c == c}
        assert met == set(itertools.product(axes["a"], axes["d"]))
    assert len(rows) < 2 * 3 * 2 * 3


def test_two_axes_need_no_choice() -> None:
    with pytest.raises(TypeError, match="use parametrize"):
        pairwise(number=[1, 2], dtype=[3])
    with pytest.raises(TypeError, match="use parametrize"):
        pairwise(("a", "b"), a=[1, 2], b=[3], c=[4])
