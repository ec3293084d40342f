"""How reports are shown: as text, in notebooks and as JSON, with repeated blocks in one row."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import mishkit as mk
from mishkit._repeats import merged, repeats
from mishkit.surgery.replacements import Replacement, Replacements
from mishkit.surgery.report import MOST, Report
from mishkit_cli import app

MANY = 256
"""Rows of an input that make tensors large enough to be recomputed."""


class Block(nn.Module):
    def __init__(self, width: int = 8, act: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.up, self.act = nn.Linear(8, width), act()
        self.down, self.last = nn.Linear(width, 8), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.down(self.act(self.up(x))))


def blocks(count: int, **how: int) -> nn.Sequential:
    return nn.Sequential(*(Block(**how) for _ in range(count)))


def rows(count: int = 4) -> Tensor:
    return torch.randn(count, 8)


def report_of(model: nn.Module) -> Report:
    return mk.audit(model, rows())


def names(texts: list[str]) -> list[tuple[str, int]]:
    rows = repeats(texts, lambda text: text, lambda text: None)
    return [(row.name, len(row.items)) for row in rows]


# ---- repeated blocks ----


@pytest.mark.parametrize(
    ("texts", "rows"),
    [
        (["0.act", "1.act", "2.act"], [("0–2.act", 3)]),
        (["layer1.0.act1", "layer1.0.act2", "layer1.1.act1", "layer1.1.act2"],
         [("layer1.0–1.act1–2", 4)]),
        (["0.act", "2.act", "3.act"], [("0,2–3.act", 3)]),
        (["0.act", "1.gate"], [("0.act", 1), ("1.gate", 1)]),
        # What is no box of numbers is told as several that are.
        (["0.0", "0.1", "1.0"], [("0.0–1", 2), ("1.0", 1)]),
        (["layer01.act", "layer01.act2"], [("layer01.act", 1), ("layer01.act2", 1)]),
        (["9.act", "10.act"], [("9–10.act", 2)]),
        (["", "act"], [("", 1), ("act", 1)]),
        ([], []),
    ],
)  # fmt: skip
def test_a_row_stands_for_all_of_its_names_and_no_others(
    texts: list[str], rows: list[tuple[str, int]]
) -> None:
    assert names(texts) == rows


def test_what_differs_otherwise_is_not_one_row() -> None:
    rows = repeats([("0.act", 8), ("1.act", 9), ("2.act", 8)], lambda i: i[0], lambda i: i[1])
    assert [(row.name, row.times) for row in rows] == [("0,2.act", " ×2"), ("1.act", "")]


def test_texts_are_merged_but_not_their_byte_counts() -> None:
    assert merged(["as Linear 0.down keeps it", "as Linear 1.down keeps it"]) == (
        "as Linear 0–1.down keeps it"
    )
    assert merged(["saves 3.2 KiB in 1", "saves 3.2 KiB in 2"]) == "saves 3.2 KiB in 1–2"


# ---- a report as text ----


def test_repeated_blocks_share_a_row_and_the_largest_saving_is_first() -> None:
    model = nn.Sequential(*(Block() for _ in range(3)), Block(width=64))
    report = report_of(model)
    first, second, *further = report.rows()
    assert (first.where, second.where) == ("3.act", "0–2.act ×3")
    assert "as Linear 0–2.down keeps it" in second.verdict
    assert first.saving is not None and second.saving is not None
    assert first.saving > second.saving == 3 * (4 * 8 * 4 - 4)
    assert {row.where for row in further} == {"0–3.last ×4"}
    assert sum(row.kept for row in report.rows()) == sum(site.kept for site in report.sites)
    lines = str(report).splitlines()
    assert lines[1].startswith("3.act ") and lines[3].startswith("0–2.act ×3 ")


def test_the_first_rows_alone() -> None:
    report = report_of(blocks(3))
    assert "and 3 sites more" in report.text(top=1) and "last" not in report.text(top=1)
    assert report.text(top=0).splitlines()[1] == "and 6 sites more"
    assert report.text(top=9) == str(report)


def test_a_report_is_a_line_in_a_prompt() -> None:
    model = blocks(12)
    report = mk.audit(model, rows(MANY))
    assert re.fullmatch(
        r"<Report: kept .* KiB, .* KiB recomputable; 24 sites, 12 of which pay: .* KiB>",
        repr(report),
    )
    assert "changed 24 of 24 sites" in repr(mk.lean(model, rows(MANY)))
    assert "\n" not in repr(report)


# ---- in a notebook ----


def check_html(text: str) -> str:
    """Well-formed, and neither a script nor anything from elsewhere; returns the text of it."""
    root = ElementTree.fromstring(f"<root>{text}</root>")
    assert not re.search(r"<script|\son\w+=|https?:|url\(|@import|<link|<img", text)
    block = root.find("div")
    assert block is not None
    return " ".join(block.itertext())


def test_a_report_in_a_notebook() -> None:
    shown = check_html(report_of(blocks(3))._repr_html_())
    assert "0–2.act ×3" in shown and "6 sites, 3 of which pay" in shown
    lean = mk.lean(blocks(3), rows(MANY))._repr_html_()
    assert "changed 6 of 6 sites" in check_html(lean) and 'style="width: 100.0%"' in lean


def test_a_long_table_is_folded() -> None:
    model = nn.Sequential(*(Block(width=8 + 8 * n) for n in range(MOST + 2)))
    text = report_of(model)._repr_html_()
    check_html(text)
    rows = len(report_of(model).rows())
    assert f"<summary>{rows - MOST} more</summary>" in text


class Named(nn.Module):
    """Holds a module by a name that is HTML."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.inner = nn.Sequential(OrderedDict([(name, nn.SiLU()), ("last", nn.Linear(8, 8))]))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * 2)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", 'a"b', "a&b", "<b>"])
def test_names_are_escaped(name: str) -> None:
    model = Named(name)
    report = mk.audit(model, torch.randn(4, 8, requires_grad=True))
    assert f"inner.{name}" in check_html(report._repr_html_())
    changed = mk.swap(model, {"silu": "mish"})
    assert f"inner.{name}" in check_html(changed._repr_html_())
    changed.left = {name: name}
    assert f"{name} is left: {name}" in check_html(changed._repr_html_())


def test_replacements() -> None:
    changed = mk.swap(blocks(12), {"silu": "mish", "hardswish": "relu"})
    assert repr(changed) == "<Replacements: SiLU() → Mish() ×12; 1 unused>"
    assert str(changed).splitlines()[1].split() == ["0–11.act", "×12", "SiLU()", "Mish()"]
    shown = check_html(changed._repr_html_())
    assert "0–11.act ×12" in shown and "12 sites replaced; none found for 'hardswish'" in shown
    plain = json.loads(changed.to_json())
    assert plain["replaced"][0] == {"name": "0.act", "old": "SiLU()", "new": "Mish()"}
    assert (len(plain["replaced"]), plain["unused"], plain["left"]) == (12, ["'hardswish'"], {})
    assert repr(Replacements()) == "<Replacements: none>"
    assert repr(Replacements([Replacement("a", "silu", "mish")], left={"b": "why"})) == (
        "<Replacements: silu → mish ×1; 1 left>"
    )


def test_an_analysis() -> None:
    pytest.importorskip("sympy")
    analysis = mk.analyze("mish", against="relu")
    assert repr(analysis).startswith("<Analysis: mish: ") and "minimum −0.308843 at −1.19243" in (
        repr(analysis)
    )
    shown = check_html(analysis._repr_html_())
    assert "Lipschitz, f" in shown and "from relu" in shown and "f′" in shown


# ---- JSON ----

KEYS = {
    *("kept", "after_lean", "lean", "ratio", "recomputable", "norms", "recomputes", "checkpointed"),
    *("blocks", "changed", "curve", "sites", "keepers"),
}
SITE_KEYS = {
    *("where", "name", "line", "function", "how", "calls", "shape", "dtype", "kept", "alone"),
    *("output_kept_by", "input_kept_by", "advice", "reason", "saving", "inplace"),
    *("gate", "by"),
}


def test_a_report_as_json() -> None:
    """Scripts rely on these keys."""
    report = report_of(blocks(3))
    plain = json.loads(report.to_json())
    assert plain.keys() == KEYS and plain["sites"][0].keys() == SITE_KEYS
    assert plain["keepers"][0].keys() == {"module", "operator", "nbytes", "recomputable"}
    assert (plain["kept"], plain["sites"][0]["dtype"]) == (report.kept, "float32")
    assert [site["name"] for site in plain["sites"]] == [site.name for site in report.sites]
    first = json.loads(report.to_json(top=2))
    assert [site["saving"] > 0 for site in first["sites"]] == [True, True]
    assert len(first["keepers"]) == 2 and first["kept"] == report.kept


def test_a_curve_as_json() -> None:
    report = mk.lean(blocks(3), rows(MANY), budget=0.9)
    curve = json.loads(report.to_json())["curve"]
    assert [point["kept"] for point in curve] == [kept for kept, _ in report.curve]
    assert curve[0]["seconds"] == 0.0


# ---- on the terminal ----

NET = """
import torch
from torch import nn

def build():
    layers = [m for _ in range(4) for m in (nn.Linear(8, 8), nn.LayerNorm(8), nn.SiLU())]
    return nn.Sequential(*layers), torch.ones(256, 8)
"""


@pytest.fixture
def net(tmp_path) -> str:  # type: ignore[no-untyped-def]
    path = tmp_path / "net.py"
    path.write_text(NET)
    return f"{path}:build"


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_audit_can_be_piped(net: str) -> None:
    plain = json.loads(printed("audit", net, "--json"))
    assert plain.keys() == KEYS and len(plain["sites"]) == 4
    assert len(json.loads(printed("audit", net, "--json", "--top", "1"))["sites"]) == 1
    text = printed("audit", net, "--top", "1")
    assert "2,5,8 ×3" in text and "and 1 site more" in text


def test_lean_can_be_piped(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mishkit.lab import surgery

    monkeypatch.setattr(surgery, "peak_in_process", lambda settings, how: None)
    plain = json.loads(printed("lean", net, "--json"))
    assert plain["after"] == plain["promised"] < plain["kept"] == plain["audited"]
    assert plain["keepers"] == [] and plain["gradient_error"] < 1e-6
    (first,) = json.loads(printed("lean", net, "--json", "--top", "1"))["keepers"]
    assert first["recomputable"] > 0
    text = printed("lean", net, "--top", "1")
    assert "can be" in text and " ×" in text.split("keeps before")[1]
