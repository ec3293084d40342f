"""The command line: thin commands, each of which calls its part of the laboratory."""

from __future__ import annotations

import sys

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
    from . import surgery  # isort: skip
    from . import compare  # isort: skip
    from . import bench  # isort: skip
    from . import accuracy  # isort: skip
    from . import calculus  # isort: skip

    def main() -> None:
        """Runs the command line."""
        app(prog_name="mishkit")
