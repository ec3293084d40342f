"""The notebooks in examples run from top to bottom, and show what they end their cells with.

Their outputs are not kept in the repository, where they would fall behind.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest
import torch
from common import ROOT

from mishkit.surgery.report import Report

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
NEEDED = {"lean_a_real_model": "timm", "choose_an_activation": "sklearn"}


def cells(path: Path, kind: str) -> list[str]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def shown(source: str, where: str, namespace: dict[str, object]) -> object:
    """Run a cell; returns the value of its last line, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, where, "exec"), namespace)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), where, "exec"), namespace)
    return eval(compile(ast.Expression(last.value), where, "eval"), namespace)


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(NEEDED)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_well_formed_and_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    identities = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identities)) == len(identities)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code") and cell["source"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    assert cells(path, "markdown")[0].startswith("# ")


@pytest.mark.long
@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(NEEDED[path.stem])
    monkeypatch.setattr(sys, "argv", [path.name])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        namespace: dict[str, object] = {"__name__": "__main__"}
        values = [
            shown(source, f"{path.name}, code cell {number}", namespace)
            for number, source in enumerate(cells(path, "code"), 1)
        ]
    finally:
        torch.set_num_threads(threads)
    rich = [value for value in values if hasattr(value, "_repr_html_")]
    assert rich and all("<table" in value._repr_html_() for value in rich[:1])  # type: ignore[attr-defined]
    if path.stem == "lean_a_real_model":
        audited, lean = rich
        assert isinstance(audited, Report) and isinstance(lean, Report) and lean.recomputes
