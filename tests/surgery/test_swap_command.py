"""`mishkit swap`: ONNX files and models, from the terminal."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mishkit_cli import app

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx_ir")

BODY = """<ir_version: 8, opset_import: ["" : 18]>
model (float[N, 4] x) => (float[N, 4] y)
{
    s = Sigmoid(x) [act1] m = Mul(x, s)
    [act2] h = Mish(m)
    p = Softplus(h) t = Tanh(p) k = Mul(h, t)
    [shared] y = Add(k, t)
}
"""
NET = """
import torch
from torch import nn
import torch.nn.functional as F

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(4, width), nn.Mish(), nn.Linear(width, 2)

    def forward(self, x):
        return self.last(F.silu(self.act(self.first(x))))

def build(width=8):
    return Net(width), (torch.ones(3, 4))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("old.onnx").write_bytes(onnx.parser.parse_model(BODY).SerializeToString())
    Path("net.py").write_text(NET)
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["swap", *arguments])
    assert "Traceback" not in done.output
    return done.exit_code, done.output


def types(path: str) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node if node.op_type != "Constant"]


def test_a_dry_run_lists_the_sites_and_writes_nothing(folder: Path) -> None:
    status, printed = run("old.onnx", "--dry-run")
    assert status == 0 and "act1  silu (Sigmoid, Mul)" in printed and "\n4 sites\n" in printed
    assert "k is left: mish, but what its Tanh gives is used elsewhere, too" in printed
    status, printed = run("old.onnx", "silu=mish", "--dry-run")
    assert status == 0 and "silu (Sigmoid, Mul)  mish (Mish)" in printed
    assert printed.endswith("1 site replaced\nnothing was written\n")
    assert {*os.listdir()} - {"__pycache__"} == {"net.py", "old.onnx"}


def test_rules_and_a_form_are_written(folder: Path) -> None:
    status, printed = run("old.onnx", "silu=relu", "--rule", "act2=hard_mish:k=3", "-o", "new.onnx")
    assert status == 0 and "2 sites replaced" in printed and "written to new.onnx" in printed
    assert types("new.onnx")[:3] == ["Relu", "HardSigmoid", "Mul"]
    # A form without rules is for every function; those that are not there are no news.
    status, printed = run("old.onnx", "--form", "fast", "-o", "new.onnx")
    assert status == 0 and "none found" not in printed
    assert "Mish" not in types("new.onnx") and "Softplus" not in types("new.onnx")
    status, printed = run("new.onnx", "--form", "fast", "-o", "new.onnx")
    assert status == 0 and "0 sites replaced" in printed
    status, printed = run("old.onnx", "mish=mish", "--form", "opset:17", "-o", "older.onnx")
    assert status == 0 and "Mish" not in types("older.onnx")


def test_json_can_be_piped(folder: Path) -> None:
    done = CliRunner().invoke(app, ["swap", "old.onnx", "mish=silu", "-o", "new.onnx", "--json"])
    assert done.exit_code == 0
    plain = json.loads(done.stdout)
    assert plain.keys() == {"replaced", "unused", "left", "output"}
    assert plain["output"] == "new.onnx" and plain["replaced"]
    done = CliRunner().invoke(app, ["swap", "old.onnx", "--dry-run", "--json"])
    assert {site["name"] for site in json.loads(done.stdout)["sites"]} >= {"act1", "act2"}


def test_where_nothing_matches_nothing_is_written(folder: Path) -> None:
    status, printed = run("old.onnx", "gelu=mish", "-o", "new.onnx")
    assert status == 1 and "0 sites replaced; none found for 'gelu'" in printed
    assert sorted(set(os.listdir()) - {"__pycache__"}) == ["net.py", "old.onnx"]


def test_a_model_is_exported_with_its_functional_calls(folder: Path) -> None:
    pytest.importorskip("onnxscript")
    rules = ("mish=mish", "silu=hardswish", "--option", "width=16")
    status, printed = run("net.py:build", *rules, "--form", "fast", "-o", "net.onnx")
    assert status == 0 and "2 sites replaced" in printed
    written = types("net.onnx")
    assert written[:3] == ["Gemm", "Sigmoid", "Sub"] and "HardSwish" in written
    assert onnx.load("net.onnx").graph.initializer[0].dims[0] == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("old.onnx", "silu=mish"), "-o FILE.onnx, or --dry-run"),
        (("old.onnx", "silu=mish", "--dry-run", "-o", "new.onnx"), "-o FILE.onnx, or --dry-run"),
        (("old.onnx", "silu", "--dry-run"), 'a rule is OLD=NEW, silu=mish or "blocks.*'),
        (("old.onnx", "-o", "new.onnx"), "what is to be replaced? silu=mish"),
        (("old.onnx", "silu=mash", "--dry-run"), 'no activation "mash"; did you mean "mish"'),
        (("old.onnx", "act3=mish", "--dry-run"), "did you mean 'act2' or 'act1'?"),
        (("old.onnx", "silu=mish", "--form", "quick", "--dry-run"), 'a form is "standard", "fast"'),
        (("old.onnx", "silu=mish", "-o", "no/new.onnx"), "there is no folder"),
        (
            ("old.onnx", "silu=mish", "-i", "1,4", "--dry-run"),
            "--option are for models",
        ),
        (("none.onnx", "silu=mish", "--dry-run"), "none.onnx: No such file"),
        (("net.py", "silu=mish", "--dry-run"), 'what is "net.py"?'),
        (("net.py:build2", "silu=mish", "--dry-run"), 'has no function "build2"'),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: tuple[str, ...], message: str, folder: Path
) -> None:
    status, printed = run(*arguments)
    assert status == 1 and message in printed and printed.count("\n") == 1
    assert sorted(set(os.listdir()) - {"__pycache__"}) == ["net.py", "old.onnx"]


def test_the_audit_of_an_onnx_file_names_the_command() -> None:
    done = CliRunner().invoke(app, ["audit", "best.onnx"])
    assert done.exit_code == 1 and "`mishkit swap best.onnx --dry-run`" in done.output
