"""`mishkit run`: programs as they are, with our kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from .app import app

MODULE = ("-m", "--module")


class _Run(TyperCommand):
    """The command; whatever follows the script or the module belongs to the program."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = 0
        while own < len(args) and args[own].startswith("-"):
            own += 1
            if args[own - 1] in MODULE:
                own += 1
                break
        return super().parse_args(ctx, [*args[:own], "--", *args[own:]])


@app.command(
    cls=_Run,
    epilog="For example: mishkit run --enable train.py --epochs 3, or mishkit run --enable "
    "--recompute -m package.train",
)
def run(
    program: Annotated[
        list[str] | None,
        typer.Argument(metavar="SCRIPT [ARGUMENTS]", help="The program and its arguments."),
    ] = None,
    module: Annotated[
        str | None,
        typer.Option(*MODULE, metavar="MODULE", help="Run a module, as python -m does."),
    ] = None,
    enable: Annotated[
        bool,
        typer.Option("--enable", help="Compute torch's activation functions with our kernels."),
    ] = False,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute",
            help="Keep nothing for the backward pass that it can recompute cheaply.",
        ),
    ] = False,
) -> None:
    """Run a program as it is, with mishkit's kernels or in less memory.

    The program is not changed, and sees its own arguments, as with python. With --enable,
    mishkit.enable() is called before it starts: mish, silu, gelu and hardswish of torch are
    computed by mishkit's CPU kernels, in every library. With --recompute, every model's forward
    pass runs under mishkit.recompute(), if gradients are wanted. Both may be given.
    """
    arguments = list(program or ())
    if module is None and not arguments:
        raise typer.BadParameter("a script, or -m and a module, is missing")
    target = arguments if module is None else ["-m", module, *arguments]
    options = ["--enable"] * enable + ["--recompute"] * recompute
    command = [sys.executable, "-m", "mishkit._program", *options, *target]
    sys.stdout.flush()
    if os.name == "nt":  # where exec returns to the shell at once
        raise typer.Exit(subprocess.call(command))
    os.execv(sys.executable, command)
