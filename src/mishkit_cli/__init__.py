"""The command line: thin commands that each call their part of the laboratory.

It stands beside the package `mishkit`, whose import brings torch and takes seconds. A command
imports mishkit only when it runs, so that help, the version and shell completion come at once.
"""

from __future__ import annotations

import sys
from importlib import import_module

try:
    import typer  # noqa: F401
except ModuleNotFoundError:
    # The command is installed with the library, but the packages it needs come with an extra.
    def main() -> None:
        """Run `env`, which needs no more than the library; for others, print what is missing."""
        if sys.argv[1:2] == ["env"]:
            from mishkit._environment import print_environment

            print_environment(as_json="--json" in sys.argv[2:])
            return
        from mishkit._missing import install

        sys.exit(f"mishkit: the command line needs more packages: {install('typer', 'cli')}")

else:
    from .app import app as app

    # `mishkit --help` lists the commands in this order.
    for _commands in ("surgery", "run", "compare", "bench", "accuracy", "calculus", "env"):
        import_module(f".{_commands}", __package__)

    def main() -> None:
        """Run the command line."""
        app(prog_name="mishkit")
