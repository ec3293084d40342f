"""The code in the README and in the how-tos runs as it stands, each page from top to bottom, and
prints what a plain block right behind it says."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from common import ROOT

PAGES = (
    "README.md",
    "docs/index.md",
    "docs/family.md",
    "docs/tutorial.md",
    "docs/audit.md",
    "docs/recompute.md",
    "docs/enable.md",
    "docs/migration.md",
    "docs/gates.md",
    "docs/swap.md",
    "docs/anneal.md",
    "docs/prune.md",
)
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```)?", re.DOTALL | re.MULTILINE)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Beside the other tests, more threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("torchvision", "one_thread")
@pytest.mark.parametrize("page", PAGES)
def test_the_code_on_a_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / page).read_text()
    blocks = list(BLOCK.finditer(text))
    assert blocks
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks:
        # So that an error shows the page's own line.
        line = text[: block.start(1)].count("\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + block[1], str(ROOT / page), "exec"), namespace)
        if block[2] is not None:
            assert printed.getvalue() == block[2]
