"""The command line: thin commands, each of which calls its part of the laboratory."""

from __future__ import annotations

import sys
from importlib import import_module

from mishkit._missing import install

try:
    import typer  # noqa: F401
except ModuleNotFoundError:
    # The command is installed with the library, the packages that it needs with an extra.
    def main() -> None:
        """Says what is missing."""
        sys.exit(f"mishkit: the command line needs more packages: {install('typer', 'cli')}")

else:
    from .app import app as app

    # `mishkit --help` lists their commands in this order.
    for _commands in ("surgery", "compare", "bench", "accuracy", "calculus"):
        import_module(f".{_commands}", __package__)

    def main() -> None:
        """Runs the command line."""
        app(prog_name="mishkit")
