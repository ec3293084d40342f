"""`mishkit bench --device cuda --paper`: what is printed and judged, of made-up kernels."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from common import TRITON
from typer.testing import CliRunner

from mishkit.bodies import BODIES
from mishkit.lab import Interrupted, LabError
from mishkit.lab.bench.settings import Settings
from mishkit.lab.code import paper as _paper
from mishkit.lab.code.gpu import ALU, FMA, ISSUE, TARGETS, Access, Code, Job
from mishkit.lab.code.paper import TORCHS, Kernel
from mishkit.lab.code.roofline import A100, GPUS, H100
from mishkit_cli import app

pytestmark = pytest.mark.skipif(not TRITON, reason="Triton is not installed")


def made_up(target: str, count: float = 1.0, **changes: object) -> Code:
    """A kernel without fault that does so many float32 operations an element."""
    is_amd = target.startswith("gfx")
    figures: dict[str, object] = {
        "target": target,
        "opcodes": {},
        "operations": {"VALU" if is_amd else FMA: count, ISSUE: count},
        "accesses": {Access(False, 128, False): 1, Access(True, 128, False): 1},
        "elements": 8.0,
        "bytes_per_element": 4.0,
        "registers": 32,
        "shared": 0,
        "local": 0,
        "float64": (),
        "calls": 0,
        "masks": 0,
        "has_loop": False,
        "diverged": count,
        "narrow_allowance": 0.0,
    }
    return Code(**{**figures, **changes})  # type: ignore[arg-type]


def codes_of(*functions: str, count: float = 1.0) -> _paper.Codes:
    kernels = _paper.kernels(functions, ["float32", "bfloat16"])
    return {k.job(t): made_up(t, count) for k in kernels for t in TARGETS}


def words(codes: _paper.Codes) -> dict[str, str]:
    return {f"{v.claim}: {v.bar}": v.word for v in _paper.verdicts(codes)}


def test_what_is_compiled() -> None:
    wanted = _paper.kernels(["mish", "relu"], ["float32"])
    assert [k.is_ours for k in wanted] == [True] * 2 * len(BODIES) + [False] * 2
    assert wanted[0].job("sm_80") == Job("mish", "forward", "float32", "sm_80")


def test_every_bar_can_be_met_and_missed() -> None:
    assert set(words({}).values()) == {"–"}
    assert set(words(codes_of("mish", "relu")).values()) == {"met"}
    ratios = [bar for bar in words({}) if "≤" in bar]
    slow = words(codes_of("mish", "relu", count=1000))
    assert {slow[bar] for bar in ratios} == {"MISSED"}


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"float64": ("DADD",)}, "no float64 instruction"),
        ({"local": 8}, "no local memory"),
        ({"accesses": {Access(True, 16, False): 16}}, "128-bit loads and stores"),
        ({"accesses": {Access(True, 128, True): 2}}, "128-bit loads and stores"),
        ({"has_loop": True}, "no calls, loops"),
        ({"diverged": 9.0}, "no calls, loops"),
        ({"bytes_per_element": 6.0}, "no calls, loops"),
        (None, "every kernel compiles"),
    ],
)
def test_one_fault_is_enough(changes: dict[str, object] | None, claim: str) -> None:
    codes = codes_of("mish", "gelu")
    job = Job("gelu", "backward", "bfloat16", "gfx942")
    codes[job] = "ValueError: no" if changes is None else made_up("gfx942", **changes)
    missed = [v for v in _paper.verdicts(codes) if v.word == "MISSED"]
    assert [v.claim.startswith(claim) for v in missed] == [True]
    assert "gelu, backward, bfloat16, gfx942" in missed[0].measured


def test_the_worst_counts() -> None:
    codes = codes_of("mish", "silu")
    for gpu in (A100, H100):
        job = Job("silu", "backward_packed", "bfloat16", gpu.target)
        busy = 0.9 * gpu.rates[ALU] * 4 / gpu.bytes_a_clock  # that share of the memory's time
        codes[job] = made_up(gpu.target, 0, operations={ALU: busy})
    verdicts = {
        v.bar: v
        for v in _paper.verdicts(codes)
        if v.claim == "bfloat16, backward packed, by a table"
    }
    assert [v.word for v in verdicts.values()] == ["met", "MISSED"]
    assert verdicts["≤ 0.8 on H100"].measured == "0.90 (silu: ALU)"


def test_torchs_kernels_have_no_bars() -> None:
    codes = codes_of("mish")
    for job in codes:
        if not Kernel(*job[:3]).is_ours:
            codes[job] = made_up(job.target, 1e4, local=4)
    assert set(words(codes).values()) <= {"met", "–"}


def test_tables_and_csv(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = codes_of("mish", "relu")
    codes[Job("relu", "forward_packed", "float32", "sm_80")] = None
    for target in TARGETS:
        codes[Job(TORCHS, "backward", "float32", target)] = "AttributeError: changed"

    def compiled(jobs: list[Job], find: object) -> Iterator[tuple[Job, object]]:
        return ((job, codes[job]) for job in jobs)

    monkeypatch.setattr(_paper, "compile_all", compiled)
    path = tmp_path / "paper.csv"
    assert _paper.main(["mish", "relu"], ["float32"], path) == 0
    said = capsys.readouterr().out
    assert f"{TORCHS}, compiled" in said and "backward packed" in said
    assert said.count("could not be had: F.mish, backward: AttributeError: changed") == 1
    assert all(gpu.name in said for gpu in GPUS)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == (2 * len(BODIES) + 2) * len(TARGETS) - 1 - len(TARGETS)
    a100 = next(row for row in rows if row["target"] == "sm_80")
    assert (a100["gpu"], a100["unit"]) == ("A100", FMA)
    assert float(a100["ratio"]) == pytest.approx(A100.bytes_a_clock / 64 / 4, rel=1e-5)


def test_an_interruption_keeps_what_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def compiled(jobs: list[Job], find: object) -> Iterator[tuple[Job, object]]:
        yield jobs[0], made_up(jobs[0].target)
        raise KeyboardInterrupt

    monkeypatch.setattr(_paper, "compile_all", compiled)
    with pytest.raises(Interrupted):
        _paper.run(_paper.kernels(["mish"], ["float32"]), _paper.find_build, ["sm_80"])
    said = capsys.readouterr().out
    assert "partial" in said and "bars met" not in said


def test_wrong_wishes() -> None:
    with pytest.raises(LabError, match="no GPU kernel takes float64"):
        _paper.main(["mish"], ["float64"])
    with pytest.raises(LabError, match="wants --device cuda"):
        Settings(paper=True)
    with pytest.raises(LabError, match="unknown device 'tpu'"):
        Settings(device="tpu")


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[object, ...]] = []

    def main(*given: object) -> int:
        asked.append(given)
        return 1

    monkeypatch.setattr(_paper, "main", main)
    arguments = ["bench", "--device", "cuda", "--paper", "-f", "mish", "--dtype", "float16"]
    arguments += ["--csv", str(tmp_path / "x.csv")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, "--check"]).exit_code == 1
    assert asked == [(("mish",), ("float16",), tmp_path / "x.csv")] * 2
