"""The record: what others' methods keep, how far their gradients are off, and the page."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from common import ROOT
from torch import nn

import mishkit as mk
from mishkit.functions import ACTIVATIONS


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("record")


def test_errors_of_steps_are_no_smaller_than_steps_allow(record: ModuleType) -> None:
    """No function of n levels is nearer to another than half of an nth of its range."""
    slope = ACTIVATIONS["gelu"].df(torch.linspace(-9, 9, 100_001, dtype=torch.float64))
    span = float(slope.max() - slope.min())
    assert span / 16 < record.error_of_three_bits() < span / 4
    assert span / 8 < record.error_of_two_bits() < 1
    assert record.LARGEST < record.error_of_optiacts() < record.error_of_three_bits()
    assert record.error_of_inversion() < record.LARGEST < record.error_of_overwriting()


def row(record: ModuleType, theirs: Any) -> Any:
    """A network of a linear layer, GELU, layer norm and another linear layer."""

    def build() -> tuple[nn.Module, torch.Tensor]:
        layers = nn.Linear(16, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 8)
        return nn.Sequential(*layers).train(), torch.randn(256, 16)

    some = record.ROWS[0]
    return dataclasses.replace(some, build=build, small=build, theirs=theirs, autocast=False)


def test_what_others_keep_is_counted(record: ModuleType) -> None:
    hidden = 256 * 64
    floats, statistics = 4 * hidden, 2 * 4 * 256
    counts = {
        name: record.counts(row(record, getattr(record, name)))
        for name in ("output_and_bit", "shared_norms")
    }
    # Torch keeps the inputs of GELU, of the norm and of the last layer, and the norm's statistics.
    assert {count["torch"] for count in counts.values()} == {3 * floats + statistics}
    assert counts["output_and_bit"]["theirs"] == 2 * floats + hidden // 8 + statistics
    assert counts["shared_norms"]["theirs"] == floats + hidden // 4 + statistics // 2
    assert counts["shared_norms"]["mk.lean"] <= floats + statistics
    model, x = row(record, None).build()
    with mk.KeptBytes([*model.parameters(), x]) as kept:
        model(x)
    assert kept.total == counts["output_and_bit"]["torch"]


def test_our_gradients_are_the_same(record: ModuleType) -> None:
    errors = record.our_errors(row(record, None))
    assert errors["same bits"] and errors["recompute"] == 0 and errors["lean, relative"] < 1e-6


def test_few_bits(record: ModuleType) -> None:
    model = nn.Sequential(nn.Linear(8, 100), nn.GELU())
    record.few_bits(model, 3)
    x = torch.randn(7, 8)
    with mk.KeptBytes([*model.parameters(), x]) as kept:
        model(x)
    assert kept.total == math.ceil(3 * 700 / 8)


def test_the_page_is_made_from_its_results(record: ModuleType) -> None:
    results = json.loads((ROOT / "docs" / "record.json").read_text(encoding="utf-8"))
    assert record.page(results) == (ROOT / "docs" / "record.md").read_text(encoding="utf-8")
    assert results["rows"].keys() <= {row.name for row in record.ROWS}


def test_verdicts(record: ModuleType) -> None:
    exact = next(row for row in record.ROWS if row.by == "InPlace-ABN")
    kept = {"torch": 1000, "theirs": 500, "mk.lean": 600, "checkpoint": 100}
    result = {"bytes": kept, "their error": 1e-7}
    assert "**ours is higher**, by 100 B" in record.verdict(exact, result)
    assert "checkpoint a block keeps less, 0.100" in record.verdict(exact, result)
    result["bytes"] = kept | {"mk.lean": 400, "checkpoint": None}
    assert ": the lowest. " in record.verdict(exact, result)
    result["their error"] = 0.1
    assert "not compared with, at an error of 0.1" in record.verdict(exact, result)
