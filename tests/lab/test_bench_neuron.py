"""`mishkit bench --neuron` without its clock: everyone does the same work, and verdicts follow."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mishkit.lab import LabError
from mishkit.lab.bench import neuron as _bench_neuron
from mishkit.lab.bench.neuron import (
    BOTH,
    CASES,
    COMPILED,
    LINEAR,
    OURS,
    PLAIN,
    Memory,
    key,
    memory_verdicts,
    time_verdicts,
)
from mishkit.lab.bench.results import Results
from mishkit.lab.common.timing import Timing
from mishkit_cli import app

QUICK_ONES = (OURS, PLAIN, LINEAR)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("BATCH", 8), ("IN", 20), ("OUT", 6)):
        monkeypatch.setattr(_bench_neuron, name, size)


def test_the_contenders_do_the_same_work() -> None:
    """Anything else would make the ratios worthless."""
    (y, gradients), (want, wanted) = (
        _bench_neuron.layer().pass_of(name)() for name in (OURS, PLAIN)
    )
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients, wanted, rtol=1e-5, atol=1e-5)
    linear, of_linear = _bench_neuron.layer().pass_of(LINEAR)()
    assert linear.shape == y.shape and of_linear[0].shape == gradients[0].shape


def test_every_case_is_timed() -> None:
    timings = _bench_neuron.time_all(1, 0, QUICK_ONES)
    assert set(timings.timings) == {key(case, name, 1) for case in CASES for name in QUICK_ONES}
    assert all(timing.min > 0 for timing in timings.timings.values())


def test_verdicts() -> None:
    results = Results({key(BOTH, OURS, 2): Timing([1.0])})
    results.timings[key(BOTH, PLAIN, 2)] = Timing([15.0])
    assert [v.word for v in time_verdicts(results, [2])] == ["met", "–"]
    results.timings[key(BOTH, COMPILED, 2)] = Timing([2.9])
    assert [v.word for v in time_verdicts(results, [2])] == ["met", "MISSED"]

    memories = {OURS: Memory(10, 10), PLAIN: Memory(499, 500)}
    assert [v.word for v in memory_verdicts(memories)] == ["MISSED", "met"]
    memories[OURS] = Memory(1, None)
    assert [v.word for v in memory_verdicts(memories)] == ["met", "–"]
    assert [v.word for v in memory_verdicts({})] == ["–", "–"]


def test_memory_counts_what_is_made() -> None:
    """16 MB that are let go of before the next 8, and 8 that stay."""

    def run() -> torch.Tensor:
        torch.ones(4 << 20)
        return torch.ones(2 << 20) + 1

    assert 16 << 20 <= _bench_neuron.allocated_by(run) <= (16 << 20) + 1000


def test_memory_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = _bench_neuron.memory_of(LINEAR)  # of the real size
    results = 4 * (256 * 128 + 256 * 784 + 784 * 128 + 128)
    assert results <= memory.allocated <= 1.5 * results
    if sys.platform == "linux" and memory.resident is not None:
        assert 0.5 * results <= memory.resident <= 4 * results
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(LabError, match="memory of Linear failed: no output"):
        _bench_neuron.memory_of(LINEAR)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bench_neuron, "CONTENDERS", QUICK_ONES)
    monkeypatch.setattr(_bench_neuron, "SECONDS", 0)
    monkeypatch.setattr(_bench_neuron, "memory_of", lambda name: Memory(1000, None))
    time_all = _bench_neuron.time_all
    monkeypatch.setattr(
        _bench_neuron, "time_all", lambda threads, seconds: time_all(threads, seconds, QUICK_ONES)
    )
    path = tmp_path / "neuron.csv"
    command = ["bench", "--neuron", "--quick", "--csv", str(path)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    for text in ("1 thread", BOTH, "allocated by torch", "MISSED", "not measured", "Written"):
        assert text in done.output
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert {row["contender"] for row in rows} == set(QUICK_ONES)
    assert {row["function"] for row in rows} == {"aptx_layer"}
    assert CliRunner().invoke(app, [*command, "--check"]).exit_code == 1  # of memory
