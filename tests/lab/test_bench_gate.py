"""`mishkit bench --gate`, on tensors so small that it takes no time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mishkit as mk
from mishkit.lab import LabError
from mishkit.lab.bench import command, gate
from mishkit.lab.bench.settings import Settings


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "SIZE", 2048)
    monkeypatch.setattr(gate, "SECONDS", 0.05)


@pytest.mark.parametrize("function", ["silu", "gelu_tanh", "aptx"])
def test_all_contenders_compute_the_same(function: str) -> None:
    calls = gate.calls(function, torch.float32)
    want = calls[gate.FORWARD, gate.OURS].run()
    for name in (gate.TORCH, gate.OF_HALVES, gate.TORCH_HALVES):
        torch.testing.assert_close(calls[gate.FORWARD, name].run(), want)
    both = calls[gate.BACKWARD, gate.OURS].run()
    torch.testing.assert_close(calls[gate.BACKWARD, gate.TORCH].run(), both)
    for name in (gate.OF_HALVES, gate.TORCH_HALVES):
        torch.testing.assert_close(calls[gate.BACKWARD, name].run(), (torch.cat(both, -1),))


def test_tables_bars_and_csv(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    settings = Settings(functions=("silu", "mish"), dtypes=("float32", "bfloat16"), quick=True)
    status = command.main_of_gates(settings, tmp_path / "times.csv")
    out = capsys.readouterr().out
    assert status in (0, 1)
    assert "silu, float32" in out and "mish, bfloat16" in out and "liger-kernel" in out
    assert "gate backward: faster than F.silu(g) * u" in out
    assert (tmp_path / "times.csv").read_text().count("mk.glu") == 8


def test_gates_are_timed_on_a_cpu() -> None:
    with pytest.raises(LabError, match="--gate is timed on a CPU"):
        command.main_of_gates(Settings(functions=("silu",), device="cuda"))


def test_vllm_is_timed_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(out: torch.Tensor, x: torch.Tensor) -> None:
        out.copy_(mk.glu(x))

    monkeypatch.setattr(gate, "vllm_kernel", lambda function: kernel)
    calls = gate.calls("silu", torch.float32)
    want = calls[gate.FORWARD, gate.OURS].run()
    torch.testing.assert_close(calls[gate.FORWARD, gate.INTO].run(), want)
    assert (gate.FORWARD, gate.VLLM) in calls
