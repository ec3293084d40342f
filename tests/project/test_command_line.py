"""The command line answers questions about itself at once, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

import mishkit
import mishkit_cli

SOURCE = Path(mishkit_cli.__file__).parent.parent
WATCHED = """
import atexit, sys
atexit.register(lambda: print(*{"mishkit", "torch"} & set(sys.modules), file=sys.stderr))
from mishkit_cli import main
main()
"""


def commands() -> list[str]:
    group = typer.main.get_command(mishkit_cli.app)
    assert isinstance(group, TyperGroup)
    return list(group.commands)


def answer(*arguments: str, **environment: str) -> str:
    """What a new process prints, which must import neither mishkit nor torch."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
    )
    assert done.returncode == 0 and done.stderr == "\n", done.stderr
    return done.stdout


@pytest.mark.parametrize("command", commands())
def test_help_of_a_command_without_torch(command: str) -> None:
    assert f"mishkit {command}" in answer(command, "--help")


def test_help_without_torch() -> None:
    assert set(commands()) <= set(answer("--help").split())


def test_version_without_torch() -> None:
    assert answer("--version") == f"mishkit {mishkit.__version__}\n"


def test_completion_without_torch() -> None:
    asked = {"_MISHKIT_COMPLETE": "complete_bash", "COMP_WORDS": "mishkit ", "COMP_CWORD": "1"}
    assert answer(**asked).split() == commands()
    asked |= {"COMP_WORDS": "mishkit audit --aut", "COMP_CWORD": "2"}
    assert answer(**asked).split() == ["--autocast"]
