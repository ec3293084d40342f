"""Run the commands of a page again, and replace their old output.

    python tools/rerun.py docs/benchmarks.md              # all
    python tools/rerun.py docs/benchmarks.md --only AVX2  # of headings that contain the word

Blocks are rerun whose first line is `$ ` and a shell command; the rest of such a block is what the
command printed. `mishkit` is that of this environment.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

BLOCK = re.compile(r"^```(?P<kind>\w*)\n\$ (?P<command>.+)\n(?P<output>[^`]*)```$", re.MULTILINE)
WIDTH = "120"


def rerun(text: str, only: str, run: Callable[[str], str]) -> str:
    """The page with new output for the blocks under headings that contain `only`."""

    def replaced(match: re.Match[str]) -> str:
        headings = re.findall(r"^#+ (.*)$", text[: match.start()], re.MULTILINE)
        if only not in (headings[-1] if headings else ""):
            return match.group()
        output = run(match["command"]).rstrip("\n")
        return f"```{match['kind']}\n$ {match['command']}\n{output}\n```"

    return BLOCK.sub(replaced, text)


def shell(command: str) -> str:
    """What a command prints; if it fails, this raises."""
    print(f"$ {command}", file=sys.stderr, flush=True)
    folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "COLUMNS": WIDTH, "PATH": f"{folder}:{os.environ['PATH']}"}
    process = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in process.stdout.splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--only", default="", help="a word of the heading")
    arguments = parser.parse_args()
    text = arguments.page.read_text(encoding="utf-8")
    arguments.page.write_text(rerun(text, arguments.only, shell), encoding="utf-8")


if __name__ == "__main__":
    main()
