"""Report any error in one line: where the user's code raised it, and its message."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import LabError

_LENGTH = 400
"""How many characters of an error are shown; some errors list hundreds of names."""
_PACKAGES = ("site-packages", "dist-packages")
_MISHKIT = Path(__file__).parents[2]
_NOT_THE_USERS = tuple(
    os.path.join(os.path.realpath(folder), "")
    for folder in (
        _MISHKIT,
        _MISHKIT.with_name("mishkit_cli"),
        sysconfig.get_paths()["stdlib"],
    )
)
"""The folders of mishkit, its command line and Python's standard library."""


@contextmanager
def telling(action: str) -> Iterator[None]:
    """Turn whatever the user's or a library's code raises in this block into a LabError that names
    the action.
    """
    try:
        yield
    except LabError:
        raise
    except (Exception, SystemExit) as error:
        raise LabError(f"{action}: {told(error)}") from error


def told(error: BaseException) -> str:
    """The error in one line: "net.py:12: ValueError: the message".

    The place is the innermost one in the user's own files; errors that passed through none have
    none.
    """
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{_shown(error.filename)}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if _is_the_users(frame.filename)), None)
    message = " ".join(str(error).split())
    if len(message) > _LENGTH:
        message = message[:_LENGTH].rstrip() + " …"
    if place is None:
        if message.startswith("mishkit."):  # the message says itself who raised it
            return message.removeprefix("mishkit.")
        if isinstance(error, OSError) and error.filename and error.strerror:
            return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if not message and frames:  # for example an assert: then show its source line
        place = place or frames[-1]
        message = place.line or ""
    kind = type(error).__name__
    text = f"{kind}: {message}" if message else kind
    return text if place is None else f"{_shown(place.filename)}:{place.lineno}: {text}"


def _is_the_users(file: str) -> bool:
    path = os.path.realpath(file)
    is_code = not file.startswith("<")  # for example <string> and <frozen …>
    return (
        is_code and not path.startswith(_NOT_THE_USERS) and not {*_PACKAGES} & {*Path(path).parts}
    )


def _shown(file: str) -> str:
    """The path relative to the current folder, if the file is inside it."""
    path = Path(os.path.realpath(file))
    current = Path.cwd()
    return str(path.relative_to(current) if path.is_relative_to(current) else file)


def check_known(kind: str, wanted: Iterable[str], known: Iterable[str]) -> None:
    """Raise LabError for a name that is not known."""
    for name in wanted:
        if name not in known:
            raise LabError(f"unknown {kind} {name!r}; there are {', '.join(known)}")
