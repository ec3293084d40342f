"""The choice of combinations: every pair occurs, in few rows, the same ones each time."""

from __future__ import annotations

import itertools

import pytest
import torch
from pairwise import all_pairs, pairwise


@pytest.mark.parametrize(
    "sizes",
    [(2, 2, 2), (5, 4, 33), (3, 1, 7), (5, 25, 4, 2, 6), (7, 3), (13, 4, 3, 2, 2, 2, 9)],
    ids=str,
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
    assert all_pairs(3, 0, 2) == all_pairs(0, 0) == []


def test_what_must_stay_apart_never_meets() -> None:
    rows = all_pairs(5, 4, 9, apart={((0, 3), (1, 1)), ((1, 0), (2, 8))})
    for i, j, count in ((0, 1, 5 * 4 - 1), (1, 2, 4 * 9 - 1), (0, 2, 5 * 9)):
        assert len({(row[i], row[j]) for row in rows}) == count
    assert not any(row[:2] == (3, 1) or row[1:] == (0, 8) for row in rows)
    with pytest.raises(AssertionError, match="nothing to choose"):
        all_pairs(2, 2, 2, apart={((0, 0), (1, 0)), ((0, 0), (1, 1))})


def test_rows_become_readable_parameters() -> None:
    skipped = pytest.param(3, id="three", marks=pytest.mark.skip)
    axes = {
        "number": [1, skipped],
        "dtype": [torch.float32],
        "options": {"plain": {}, "inplace": {"i": 1}},
    }
    mark = pairwise(axes).mark
    names, rows = mark.args
    assert names == ("number", "dtype", "options") and mark.kwargs == {"indirect": []}
    by_id = {row.id: row for row in rows}
    assert set(by_id) == {
        "1-float32-plain", "1-float32-inplace", "three-float32-plain", "three-float32-inplace"
    }  # fmt: skip
    row = by_id["three-float32-inplace"]
    assert row.values == (3, torch.float32, {"i": 1}) and [m.name for m in row.marks] == ["skip"]
    assert pairwise({"kernels": [1], "b": [2], "c": [3]}).mark.kwargs == {"indirect": ["kernels"]}
    without = pairwise(axes, apart=[{"options": {}, "number": 3}]).mark.args[1]
    assert {row.id for row in without} == set(by_id) - {"three-float32-plain"}


def test_an_axis_may_have_combinations_of_its_own() -> None:
    together = list(itertools.product([1, 2], [1, 2, 3]))
    rows = pairwise({"c": [1, 2], "a,d": together, "b": [1, 2, 3]}).mark.args[1]
    for c in (1, 2):
        assert {row.values[1:3] for row in rows if row.values[0] == c} == set(together)
    assert {row.id for row in rows} == {"-".join(map(str, row.values)) for row in rows}
    assert len(rows) < 2 * len(together) * 3
