"""The command line itself: its errors, its version, and what the commands share."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from shutil import get_terminal_size
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

TRACEBACK = "--traceback"
RUN = "run"
INTERRUPTED = 130
"""The exit status after Ctrl-C, as in `mishkit.lab`, which may not have been imported yet."""
ROOM_FOR_BOXES = 80
CLI_PACKAGES = frozenset(("rich", "typer"))
LAB_PACKAGES = frozenset(
    (
        "jinja2",
        "lightning_fabric",
        "matplotlib",
        "mlxtend",
        "mpmath",
        "numpy",
        "pandas",
        "PIL",
        "scipy",
        "sklearn",
        "sympy",
    )
)


class _Commands(TyperGroup):
    """The commands. Errors are printed as one line, and output is encodable on any terminal."""

    def main(self, *args: Any, **keywords: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # characters that can't be encoded become ?
                stream.reconfigure(errors="replace")
        return super().main(*args, **keywords)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # The option may also follow the command, unless that runs another program.
        if TRACEBACK in args and RUN not in args[: args.index(TRACEBACK)]:
            args = [TRACEBACK, *(argument for argument in args if argument != TRACEBACK)]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with one_line_errors(whole=ctx.params["traceback"]):
            return super().invoke(ctx)


@contextmanager
def one_line_errors(*, whole: bool = False) -> Iterator[None]:
    """Turn every error into one line on stderr and an exit status: 130 for Ctrl-C, otherwise 1.

    With `whole`, the traceback is printed first.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        caught: BaseException = error
        message, status, for_all = "interrupted", INTERRUPTED, True
    except BrokenPipeError:  # the reader of the output has closed it
        raise
    except Exception as error:
        if hasattr(error, "exit_code"):  # one of Typer's own: an exit, or a usage error
            raise
        from mishkit.lab import LabError

        caught = error
        if isinstance(error, LabError):
            message, status, for_all = str(error), error.status, False
        else:
            message, status, for_all = _described(error), 1, True
    else:
        return
    # If several processes meet the same error, only one reports it.
    if whole or for_all or os.environ.get("LOCAL_RANK", "0") == "0":
        if whole:
            _show_everything(caught)
        typer.echo(f"mishkit: {' '.join(message.split())}", err=True)
    raise typer.Exit(status)


def _described(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        missing = error.name or ""
        package = missing.partition(".")[0]
        if package in CLI_PACKAGES | LAB_PACKAGES:
            from mishkit._missing import install

            extra = "cli" if package in CLI_PACKAGES else "lab"
            return f"{missing} is not installed: {install(missing, extra)}"
    from mishkit.lab.common.errors import told

    return told(error)


def _show_everything(error: BaseException) -> None:
    """Print the traceback, including the causes that a LabError hides."""
    link: BaseException | None = error
    while link is not None:
        link.__suppress_context__ = link.__cause__ is not None
        link = link.__cause__ or link.__context__
    traceback.print_exception(error)


app = typer.Typer(
    name="mishkit",
    cls=_Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    # In narrow terminals Typer's boxes would break and cut words.
    rich_markup_mode="markdown" if get_terminal_size().columns >= ROOM_FOR_BOXES else None,
    help="Smooth activation functions for PyTorch, below ReLU's price, and tools to measure that.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mishkit {_version()}")
        raise typer.Exit


def _version() -> str:
    """`mishkit.__version__`, without importing mishkit."""
    package = find_spec("mishkit")
    assert package is not None and package.origin is not None
    version: str = run_path(str(Path(package.origin).with_name("_version.py")))["__version__"]
    return version


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
    traceback: Annotated[
        bool,
        typer.Option(
            TRACEBACK,
            help="Show the whole traceback of an error, not just one line.",
            envvar="MISHKIT_TRACEBACK",
        ),
    ] = False,
) -> None:
    pass
