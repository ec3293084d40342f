"""The code in the README and in the how-tos runs as it stands, each page from top to bottom, and
prints what a plain block right behind it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/audit.md")
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```)?", re.DOTALL | re.MULTILINE)


@pytest.mark.usefixtures("torchvision")
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
