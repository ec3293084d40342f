"""Files that commands write: completely or not at all, and by one process at a time."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .. import LabError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl


@contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write to, which replaces `path` at the end of the block.

    If the block fails or the disk is full, the previous file stays. Folders are created. Text is
    UTF-8, and line endings are written unchanged.

    Raises
    ------
    LabError
        if it can't be written
    """
    place = path.resolve()  # so that a link stays a link
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        if _is_special(place):
            with place.open(mode, **text) as file:
                yield file
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_name(f"{place.name}.{os.getpid()}.new")
        try:
            with beside.open(mode, **text) as file:
                yield file
            beside.replace(place)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise LabError(f"{path} can't be written: {error.strerror or error}") from error


def check_writable(path: Path | None) -> None:
    """Raise LabError if `path` can't be written, before hours of work are lost."""
    if path is None:
        return
    place = path.resolve()
    if place.is_dir():
        raise LabError(f"{path} can't be written: it is a folder")
    if not _is_special(place):
        place = next(folder for folder in place.parents if folder.exists())
        if not place.is_dir():
            raise LabError(f"{path} can't be written: {place} is no folder")
    if not os.access(place, os.W_OK):
        raise LabError(f"{path} can't be written: {os.strerror(errno.EACCES)}")


def _is_special(path: Path) -> bool:
    """Whether it is a pipe or a device, which can't be replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()


@contextmanager
def locked(path: Path, work: str) -> Iterator[None]:
    """Hold a lock on the file `path`; the system releases it if the process ends.

    Raises
    ------
    LabError
        if another process holds it; `work` says what that process is working on
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            raise LabError(f"another mishkit is at work on {work}: wait until it is done") from None
        except OSError:  # a file system without locks
            pass
        yield


def _lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
