"""Files of the repository that no program reads: they must not fall behind."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from common import ROOT

from mishkit._version import __version__

yaml = pytest.importorskip("yaml")
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == __version__ and cited["license"] == "MIT"
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["authors"] and all("name" in author for author in cited["authors"])


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_an_issue_template_is_a_form(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    names = [field["id"] for field in form["body"]]
    assert len(names) == len(set(names))
    assert all(field["type"] == "textarea" and field["attributes"]["label"]
               for field in form["body"])  # fmt: skip


def test_a_bug_comes_with_its_environment() -> None:
    assert TEMPLATES
    assert "mishkit env" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()


def test_nobody_is_told_to_install_mishkit_from_an_index() -> None:
    """Nothing is published: it is installed from a clone. Only the steps of a release go on."""
    try:
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout")
    told = re.compile(r"""(pip3?|uv( pip)?|pipx) (install|add) ([^\n`]* )?["']?mishkit\b(?!/)""")
    exempt = {"docs/release.md", ".github/workflows/release.yml"}
    ends = (".py", ".md", ".yml", ".yaml", ".toml", ".html", ".cff", ".ipynb", "Makefile")
    for name in listed:
        path = ROOT / name
        if name.endswith(ends) and name not in exempt and path.exists():
            match = told.search(path.read_text(encoding="utf-8"))
            assert match is None, f"{name}: {match and match[0]}"
