"""Options shared by several commands, and options made from the fields of a settings class."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any

import typer

Function = Annotated[
    list[str] | None,
    typer.Option(
        "--function", "-f", help="A function; repeat the option for more.", show_default="all"
    ),
]
"""The option that takes function names."""


def takes(settings: type) -> Callable[[Callable[[Any], None]], Callable[..., None]]:
    """Give a command that takes these settings one option per field.

    A field describes its option in its metadata; see `mishkit.lab.study.settings.option`.
    """
    types = typing.get_type_hints(settings)
    by_name = {field.name: field for field in fields(settings)}

    def decorate(run: Callable[[Any], None]) -> Callable[..., None]:
        @functools.wraps(run)
        def command(**arguments: Any) -> None:
            run(
                settings(
                    **{name: _value(by_name[name], value) for name, value in arguments.items()}
                )
            )

        parameters = [_parameter(field, types[field.name]) for field in by_name.values()]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return decorate


def _parameter(field: Field[Any], kind: Any) -> inspect.Parameter:
    metadata, default = field.metadata, field.default
    if metadata["parse"] is not None:
        kind, default = str, metadata["text"]
    elif typing.get_origin(kind) is tuple:
        kind, default = list[typing.get_args(kind)[0]] | None, None  # type: ignore[misc]
    names = metadata["names"] or (f"--{field.name.replace('_', '-')}",)
    extra = {key: metadata[key] for key in ("min", "max") if metadata[key] is not None}
    if metadata["shown"] is not None:
        extra["show_default"] = metadata["shown"]
    option = typer.Option(*names, help=metadata["help"], **extra)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, option],
    )


def _value(field: Field[Any], value: Any) -> Any:
    if field.metadata["parse"] is not None:
        return field.metadata["parse"](value)
    if isinstance(field.default, tuple):
        return tuple(value) if value else field.default
    return value
