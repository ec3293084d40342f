"""`mishkit env`: what a bug report should say."""

from __future__ import annotations

from typing import Annotated

import typer

from .app import app


@app.command(epilog="For example: mishkit env")
def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Show what mishkit runs on: versions, CPU, kernels and GPU, for a bug report.

    Says which instruction set the kernels use, or why there are none. Needs no extra.
    """
    from mishkit._environment import print_environment

    print_environment(as_json=as_json)
