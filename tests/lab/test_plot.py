"""`mishkit plot` and the gallery: files come out, and what they show is what was asked for."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from common import DEFAULTS, ROOT, Case, every_function
from matplotlib.figure import Figure
from typer.testing import CliRunner

from mishkit.functions import ACTIVATIONS
from mishkit.lab import LabError
from mishkit.lab.calculus import drawing, gallery
from mishkit.lab.common.named import find
from mishkit_cli import app

DOCS = ROOT / "docs"


def drawn(text: str) -> drawing.Drawn:
    return drawing.of_named(find(text))


@every_function
@pytest.mark.parametrize(("order", "formula"), [(0, "f"), (1, "df"), (2, "d2f")])
def test_curves_are_the_functions(case: Case, order: int, formula: str) -> None:
    x, y = drawn(case.a.name).lines(order, -5, 4)
    assert x[0] == -5 and x[-1] == 4 and (np.diff(x) >= 0).all()
    here = np.isfinite(y)
    for joint in drawn(case.a.name).curve.joints:  # where the convention decides
        here &= x != float(joint)
    want = case.exactly(formula, torch.tensor(x[here])).numpy()
    np.testing.assert_allclose(y[here], want, rtol=1e-9, atol=1e-12)


def test_lines_are_broken_where_they_jump_and_nowhere_else() -> None:
    for name, gaps in (("mish", (0, 0, 0)), ("hard_mish", (0, 2, 2)), ("h_mish", (0, 1, 2))):
        lines = [drawn(name).lines(order, -5, 4)[1] for order in range(3)]
        assert tuple(int(np.isnan(line).sum()) for line in lines) == gaps


def test_panels() -> None:
    figure = Figure(layout="constrained")
    with drawing.style():
        drawing.draw(figure, [drawn("h_mish"), drawn("gelu")], against=drawn("mish"))
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["f(x)", "f′(x)", "f″(x)", "error: f(x) − mish(x)"]
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["mish", "h_mish", "gelu"]
    errors = figure.axes[3].get_legend()
    assert errors is not None
    assert [text.get_text() for text in errors.get_texts()] == ["h_mish: 0.253", "gelu: 0.209"]


def test_curves_differ_in_colour_and_dashes() -> None:
    assert len(set(drawing.COLOURS)) == len(set(map(str, drawing.DASHES))) == 7


@pytest.mark.parametrize("suffix", drawing.FORMATS)
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"figure.{suffix}"
    done = CliRunner().invoke(app, ["plot", "hard_mish:k=3", "--against", "mish", "-o", str(path)])
    assert done.exit_code == 0, done.output
    head = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(head)


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    first, second = tmp_path / "one.svg", tmp_path / "two.svg"
    for path in (first, second):
        drawing.save([drawn("mish")], path)
    assert first.read_text() == second.read_text()


def test_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    monkeypatch.setattr("matplotlib.get_backend", lambda: "a window")
    drawing.window([drawn("relu")])
    assert len(shown) == 1 and len(shown[0].axes) == 3
    plt.close("all")


@pytest.mark.parametrize(
    "wrong",
    [
        ["plot"],
        ["plot", "mosh", "-o", "x.png"],
        ["plot", "mish", "-o", "x.doc"],
        ["plot", "mish", "--range=4,-4", "-o", "x.png"],
        ["plot", "mish", "--range=4", "-o", "x.png"],
    ],
    ids=" ".join,
)
def test_wrong_calls(wrong: list[str]) -> None:
    done = CliRunner().invoke(app, wrong)
    assert done.exit_code == 1 and done.stderr.startswith("mishkit: ")


def test_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.get_backend", lambda: "agg")
    with pytest.raises(LabError, match="--out"):
        drawing.window([drawn("relu")])


def test_the_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: ACTIVATIONS[name] for name in ("relu", "mish")}
    monkeypatch.setattr(gallery, "ACTIVATIONS", few)
    done = CliRunner().invoke(app, ["plot", "--gallery", str(tmp_path)])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "gallery.md").read_text(encoding="utf-8")
    for name in few:
        assert (tmp_path / "gallery" / f"{name}.svg").exists() and f"## {name}\n" in page
    assert "f = −0.308843413 at x = −1.192431215" in page


@pytest.mark.skipif(not DOCS.exists(), reason="there are no docs here")
def test_the_gallery_in_the_docs_has_every_function() -> None:
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    for case in DEFAULTS:
        assert f"## {case.a.name}\n" in page
        assert (DOCS / "gallery" / f"{case.a.name}.svg").exists()
