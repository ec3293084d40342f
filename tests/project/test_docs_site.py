"""What tools/docs_site.py does for the site, and that it notices what it should. `make check`
builds the site itself."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import TestCase

import pytest
from common import ROOT

import mishkit as mk
from mishkit.functions import ACTIVATIONS

sys.path.append(str(ROOT / "tools"))

import docs_site


def test_every_public_name_is_on_one_page() -> None:
    pages = docs_site.public_names()
    listed = [name for names in pages.values() for name in names]
    assert len(listed) == len(set(listed))
    assert set(listed) == {*mk.__all__} - {"__version__", "functional", "modules"}
    assert "lean" in pages["models"] and "APTxLayer" in pages["neuron"]


def test_the_reference_has_every_formula_and_source() -> None:
    pages = dict(docs_site.reference())
    for a in ACTIVATIONS.values():
        assert (
            f"| [`{a.name}`](#mishkit.{a.name}) | {a.formula} |" in pages["reference/functions.md"]
        )
        assert pages["reference/functions.md"].count(f"::: mishkit.{a.name}\n") == 1
        assert pages["reference/modules.md"].count(f"::: mishkit.{a.module_name}\n") == 1
    assert (
        "::: mishkit.surgery.lean.lean\n" in pages["reference/models.md"]
    )  # not the file's module
    for command in ("compare", "bench", "explain", "lean"):
        assert f"\n## mishkit {command}\n" in pages["reference/commands.md"]
    assert "`-f, --function <list>`" in pages["reference/commands.md"]


@pytest.mark.parametrize(
    ("link", "source", "wanted"),
    [
        ("[a](accuracy.md)", "docs/claims.md", "[a](accuracy.md)"),
        ("[`a`](accuracy.md#x)", "docs/claims.md", "[`a`](accuracy.md#x)"),
        ("[a](docs/accuracy.md#x)", "README.md", "[a](accuracy.md#x)"),
        ("[a](../README.md)", "docs/claims.md", "[a](index.md)"),
        ("[a](../CONTRIBUTING.md#b)", "docs/tutorial.md", "[a](contributing.md#b)"),
        ("![a](gallery/mish.svg)", "docs/gallery.md", "![a](gallery/mish.svg)"),
        ("[a](../setup.py)", "docs/gpu.md", "a"),  # there, but no page
        ("[a](../setup.txt)", "docs/gpu.md", "[a](../setup.txt)"),  # for MkDocs to warn about
        ("[a](#b) [c](https://d.org/e)", "docs/gpu.md", "[a](#b) [c](https://d.org/e)"),
        ("`[a](../setup.py)`", "docs/gpu.md", "`[a](../setup.py)`"),
        ("```\n[a](../setup.py)\n```", "docs/gpu.md", "```\n[a](../setup.py)\n```"),
    ],
)
def test_links(link: str, source: str, wanted: str) -> None:
    assert docs_site.with_links(link, source) == wanted


def test_sections_of_the_readme() -> None:
    text = "# A\n\nx\n\n## B\n\none\n\n```\n# no heading\n```\n\n## C\n\ntwo\n"
    assert docs_site.section(text, "B") == "one\n\n```\n# no heading\n```"
    assert docs_site.section(text, "C") == "two"


def test_a_section_that_is_missing() -> None:
    with TestCase().assertLogs() as logs:
        docs_site.section("# A\n\nx\n", "B")
    assert 'no heading "B"' in logs.output[0]


def test_a_sound_site_and_an_unsound_one(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<a href="https://x.org"></a><script src="a.js"></script><h2 id="mk.a"></h2>')
    assert not list(docs_site.complaints(tmp_path, {"mk.a"}))
    page.write_text('<script src="https://x.org/a.js"></script><link href="//x.org/b.css">')
    (tmp_path / "c.css").write_text("@font-face { src: url('https://x.org/c.woff') }")
    assert list(docs_site.complaints(tmp_path, {"mk.a"})) == [
        "page.html loads https://x.org/a.js",
        "page.html loads //x.org/b.css",
        "c.css loads https://x.org/c.woff",
        "mk.a stands 0 times in the reference: ",
    ]
