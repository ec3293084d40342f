"""`mishkit env`, and how CPUs are named."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from mishkit import _environment
from mishkit._environment import as_text, cpu_name, environment, slug
from mishkit.backends import cpu
from mishkit_cli import app

KEYS = (
    *("mishkit", "torch", "triton", "python", "system", "machine", "cpu", "cores", "threads"),
    *("torch_cpu", "kernels", "kernels_available", "why_no_kernels", "compiler", "gpu", "cuda"),
    "path",
)


def test_the_command_prints_every_fact() -> None:
    done = CliRunner().invoke(app, ["env", "--json"])
    plain = json.loads(done.stdout)
    assert tuple(plain) == KEYS and plain["kernels"] == cpu.isa()
    done = CliRunner().invoke(app, ["env"])
    assert f"kernels            {cpu.isa()}" in done.stdout or cpu.isa() == "none"
    assert f"torch              {plain['torch']}" in done.stdout.splitlines()


def test_missing_kernels_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "isa", lambda: "none")
    monkeypatch.setenv(cpu.VARIABLE, "none")
    facts = environment()
    assert facts["why_no_kernels"] == "MISHKIT_CPU_ISA=none is set"
    assert "kernels            none, plain torch: MISHKIT_CPU_ISA=none is set" in as_text(facts)
    monkeypatch.delenv(cpu.VARIABLE)
    monkeypatch.setattr(cpu, "_unavailable", lambda: "its kernels were not built")
    assert environment()["why_no_kernels"] == "its kernels were not built"


def test_it_works_without_the_packages_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mishkit_cli

    monkeypatch.setitem(sys.modules, "typer", None)
    namespace: dict[str, Any] = {"__name__": "mishkit_cli", "__package__": "mishkit_cli"}
    source = mishkit_cli.__file__
    assert source is not None
    with open(source) as file:
        exec(compile(file.read(), source, "exec"), namespace)
    monkeypatch.setattr(sys, "argv", ["mishkit", "env", "--json"])
    namespace["main"]()
    assert tuple(json.loads(capsys.readouterr().out)) == KEYS


@pytest.mark.parametrize(
    ("said", "name", "file"),
    [
        ({"model name": "AMD EPYC", "vendor_id": "AuthenticAMD", "cpu family": "26", "model": "2"},
         "AMD EPYC (Zen 5)", "amd-epyc-zen-5"),
        ({"model name": "AMD EPYC", "vendor_id": "AuthenticAMD", "cpu family": "25",
          "model": "17"}, "AMD EPYC (Zen 4)", "amd-epyc-zen-4"),
        ({"model name": "Intel(R) Xeon(R) Processor", "vendor_id": "GenuineIntel",
          "cpu family": "6", "model": "207"},
         "Intel Xeon (Emerald Rapids)", "intel-xeon-emerald-rapids"),
        ({"model name": "Intel(R) Xeon(R) Processor", "vendor_id": "GenuineIntel",
          "cpu family": "6", "model": "1"},
         "Intel Xeon (family 6, model 1)", "intel-xeon-family-6-model-1"),
        ({"model name": "Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz", "cpu family": "6",
          "model": "106"}, "Intel Xeon Platinum 8370C", "intel-xeon-platinum-8370c"),
        ({"model name": "AMD EPYC 7763 64-Core Processor", "cpu family": "25", "model": "1"},
         "AMD EPYC 7763", "amd-epyc-7763"),
        ({"model name": "Neoverse-N1"}, "Neoverse-N1", "neoverse-n1"),
    ],
)  # fmt: skip
def test_a_cpu_has_a_name(
    said: dict[str, str], name: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_environment, "_cpuinfo", lambda: said)
    assert cpu_name() == name and slug(name) == file
    assert slug(name, "avx512") == f"{file}-avx512"
