"""tools/rerun.py: what commands print, put anew into a page."""

import sys
from pathlib import Path

import pytest
from common import ROOT

sys.path.append(str(ROOT / "tools"))

import rerun

PAGE = """# Page

## First

```
$ echo one
old
older
```

## Second

```console
$ echo two | sed s/two/three/
```

```python
print("no command")
```
"""


def test_blocks_with_a_command_get_its_output() -> None:
    asked = []

    def run(command: str) -> str:
        asked.append(command)
        return "new \\1\n"

    text = rerun.rerun(PAGE, "", run)
    assert asked == ["echo one", "echo two | sed s/two/three/"]
    assert "$ echo one\nnew \\1\n```" in text and "old" not in text
    assert "```console\n$ echo two | sed s/two/three/\nnew \\1\n```" in text
    assert '```python\nprint("no command")\n```' in text
    assert rerun.rerun(text, "", run) == text


@pytest.mark.skipif(sys.platform == "win32", reason="its commands are bash's")
def test_one_heading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    monkeypatch.setattr(sys, "argv", ["rerun.py", str(path), "--only", "Second"])
    rerun.main()
    assert path.read_text() == PAGE.replace("three/\n", "three/\nthree\n")
