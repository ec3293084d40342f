"""`make gpu` as a dry run: its stages, going on after an interruption, and the page."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from common import ROOT, TRITON

PROGRAM = ROOT / "benchmarks" / "gpu.py"
STEPS = "machine,accuracy,lean"
"""The quick ones: the others take the same way."""
pytestmark = pytest.mark.skipif(not TRITON, reason="Triton is not installed")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROGRAM.parent))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def run(folder: Path, *options: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--dry-run", "--folder", str(folder), *options],
        capture_output=True,
        text=True,
        env=kept,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(folder: Path, stage: str) -> list[dict[str, Any]]:
    (path,) = folder.glob(f"*/{stage}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def run_here(
    benchmarks: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The same in this process, where torch is imported already, with results in `folder`."""
    gpu = module("gpu")

    def stage(self: Any, name: str, folder: Path, until: float, shares: int) -> list[int]:
        share = ("--stage", name, "--share", "0/1", "--until", str(until))
        return [gpu.work(gpu.parsed(["--dry-run", *share, "--folder", str(folder)]))]

    def run_here(folder: Path, *options: str) -> str:
        monkeypatch.setattr(gpu.Run, "folder", lambda self: folder)
        monkeypatch.setattr(gpu.Run, "why_no_triton", "", raising=False)
        assert gpu.Run(gpu.parsed(["--dry-run", *options])).all() == 0
        return capsys.readouterr().out

    # Tests are interpreted as a dry run is, and faithfully.
    monkeypatch.setattr(gpu, "prepare", lambda is_dry: None)
    monkeypatch.setattr(gpu.Run, "processes", stage)
    return run_here


@pytest.mark.long
def test_a_dry_run_goes_on_where_it_stopped(tmp_path: Path, run_here: Callable[..., str]) -> None:
    run(tmp_path, "--only", STEPS)
    for stage in STEPS.split(","):
        records = lines(tmp_path, stage)
        assert records and all(record["dry"] for record in records)
        assert [record for record in records if "error" in record or "skipped" in record] == []
    accuracy = {
        line["item"]: line["result"] for line in lines(tmp_path, "accuracy") if "result" in line
    }
    assert accuracy["mish, float32"]["f, ULP"] < 4.5 and accuracy["mish, float32"]["NaN stays"]
    assert accuracy["mish, bfloat16"]["f, ULP"] < 0.56 and accuracy["aptx, float32"]["df"] < 2.5e-7
    lean = {line["item"]: line["result"] for line in lines(tmp_path, "lean") if "result" in line}
    assert lean["Llama, the same gradient"]["same bits"]
    assert lean["resnet50, Mish, selective checkpoint"]["milliseconds"]["torch"]["min"] > 0

    (path,) = tmp_path.glob("*/accuracy.jsonl")
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[:-2]) + kept[-2][:-9])  # cut off while the last item was begun
    said = run_here(path.parent, "--only", "accuracy")
    again = lines_of(path)[len(kept) - 2 :]
    assert [line["item"] for line in again if "result" in line] == [json.loads(kept[-1])["item"]]
    assert "9 done" in said


def lines_of(path: Path) -> list[dict[str, Any]]:
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            records.append({"item": "cut off"})
    return records


def test_no_time_is_said(tmp_path: Path, run_here: Callable[..., str]) -> None:
    said = run_here(tmp_path, "--only", "machine,accuracy", "--minutes", "0")
    assert "out of time" in said


def test_an_item_that_a_process_died_of_is_not_tried_again(
    tmp_path: Path, benchmarks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = module("gpu")
    stages = module("gpu_stages")
    calls = []
    items = [("died", lambda: calls.append("died")), ("next", lambda: 1), ("breaks", _broken)]
    monkeypatch.setattr(gpu, "prepare", lambda is_dry: None)
    monkeypatch.setitem(stages.STAGES, "lean", lambda on: iter(items))
    gpu.Writer(tmp_path / "lean.jsonl", True)("died", began=True)
    gpu.settle(tmp_path, "lean", True, error="the process ended")
    options = gpu.parsed(
        [
            *("--dry-run", "--stage", "lean", "--share", "0/1"),
            *("--until", str(time.time() + 60), "--folder", str(tmp_path)),
        ]
    )
    assert gpu.work(options) == gpu.BROKEN  # the next process goes on
    records = gpu.records(tmp_path, "lean")
    assert "the process ended" in records["died"]["error"] and not calls
    assert records["next"]["result"] == 1 and "illegal" in records["breaks"]["error"]
    assert "result" in gpu.records(tmp_path, "lean")["next"]
    assert gpu.work(options) == 0  # everything is known


def test_what_was_late_is_tried_again(tmp_path: Path, benchmarks: None) -> None:
    gpu = module("gpu")
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    process = subprocess.Popen(sleeper, start_new_session=True)
    assert gpu.ended(process, time.time()) == gpu.LATE
    gpu.Writer(tmp_path / "lean.jsonl", True)("slow", began=True)
    gpu.settle(tmp_path, "lean", True, skipped="out of time")
    assert not gpu.is_done(gpu.records(tmp_path, "lean")["slow"])


def _broken() -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with …")


def test_half_the_batch_where_memory_is_short(
    benchmarks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, networks = module("gpu_stages"), module("gpu_networks")
    tried = []

    def step(on: Any, network: Any, way: str, batch: int) -> dict[str, int]:
        tried.append(batch)
        if batch > 20:
            raise torch.OutOfMemoryError
        return {"batch": batch}

    monkeypatch.setattr(stages, "_beside_torch", step)
    on = module("gpu_machine").NvidiaGPU()
    monkeypatch.setattr(on, "free", lambda: None)
    network = networks.NETWORKS["vit_base"]
    assert stages.beside_torch(on, network, "mk.lean") == {"batch": 16}
    assert tried == [128, 64, 32, 16]


def test_a_machine_that_cannot_says_why(benchmarks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = module("gpu_machine")
    on = machines.NvidiaGPU()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(machines.NoGPUError, match="built without CUDA"):
        on.check()
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(machines.NoGPUError, match="is older than"):
        on.check()
    monkeypatch.undo()
    monkeypatch.setattr(machines, "COMPILERS", ("no-such-compiler",))
    monkeypatch.delenv("CC", raising=False)
    assert "no C compiler" in machines.what_triton_lacks()


def test_the_networks_are_those_of_their_names(benchmarks: None) -> None:
    """By the number of their parameters, as their papers or libraries give it."""
    networks, yolo = module("gpu_networks"), module("yolo")
    with torch.device("meta"):
        models = {
            25_557_032: networks.resnet(),
            5_288_548: networks.efficientnet(),
            86_567_656: networks.ViT(),
            62_998_749: yolo.YOLOv3SPP(torch.nn.Mish),
        }
        for count, model in models.items():
            assert sum(parameter.numel() for parameter in model.parameters()) == count
        shapes = [tuple(y.shape[1:]) for y in models[62_998_749](torch.randn(1, 3, 416, 416))]
    assert shapes == [(255, side, side) for side in (13, 26, 52)]


def test_without_results_the_page_says_so(
    tmp_path: Path, benchmarks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, pages = module("gpu"), module("gpu_page")
    page = tmp_path / "gpu.md"
    page.write_text("a\n<!-- gpu: begin -->\nold\n<!-- gpu: end -->\nb\n")
    monkeypatch.setattr(pages, "PAGE", page)
    pages.write_page(tmp_path / "results")
    assert "No GPU has run this yet" in page.read_text()
    facts = dict.fromkeys(("gpu", "target", "driver", "torch", "triton", "cudnn", "date"), "some")
    gpu.Writer(tmp_path / "results" / "a-gpu" / "machine.jsonl", True)("facts", result=facts)
    pages.write_page(tmp_path / "results")
    assert "No GPU has run this yet" in page.read_text()  # what a dry run wrote is no result


def test_a_page_of_results(
    tmp_path: Path, benchmarks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, pages = module("gpu"), module("gpu_page")
    page, folder = tmp_path / "gpu.md", tmp_path / "results" / "a-gpu"
    page.write_text("<!-- gpu: begin -->\n<!-- gpu: end -->\n")
    monkeypatch.setattr(pages, "PAGE", page)
    write = {name: gpu.Writer(folder / f"{name}.jsonl", False) for name in ("machine", "lean")}
    facts = dict.fromkeys(("target", "driver", "torch", "triton", "cudnn", "date"), "some")
    write["machine"]("facts", result={**facts, "gpu": "A GPU", "is_part": True})
    both = {
        way: {"alive": size, "peak": size} for way, size in (("torch", 4096), ("mk.lean", 1024))
    }
    times = {way: {"min": 2.0, "median": 3.0} for way in both}
    row = {"batch": 64, "memory": both, "milliseconds": times}
    write["lean"]("vit_base, mk.lean", result=row)
    write["lean"]("Llama, mk.lean", error="the GPU's memory does not suffice")
    pages.write_page(tmp_path / "results")
    text = page.read_text()
    assert "## On A GPU" in text and "MIG" in text
    assert "| vit_base | `mk.lean` | 64 |" in text and "| 0.250 | 0.250 | 2.0 ms | 1.000 |" in text
    assert "`Llama, mk.lean`: failed, the GPU's memory does not suffice" in text
