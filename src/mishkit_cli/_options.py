"""Options shared by several commands."""

from __future__ import annotations

from typing import Annotated

import typer

Function = Annotated[
    list[str] | None,
    typer.Option(
        "--function", "-f", help="A function; repeat the option for more.", show_default="all"
    ),
]
"""The option that takes function names."""
