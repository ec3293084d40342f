"""Runs another program as it is, with our kernels: what `mishkit run` becomes.

    python -m mishkit._program [--enable] [--recompute] script.py [arguments]
    python -m mishkit._program [--enable] [--recompute] -m module [arguments]

The program is `__main__`, and sees its own arguments, path and tracebacks, as with `python`.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import pkgutil
import sys
from types import CodeType, ModuleType

NOT_FOUND = 2
"""The exit status for a script that can't be opened, as Python's own."""
INTERRUPTED = 130


def main(arguments: list[str]) -> None:
    """Prepare, and run the program that the arguments name."""
    options = set()
    while arguments and arguments[0].startswith("--"):
        options.add(arguments.pop(0))
    if "--enable" in options:
        from mishkit import enable

        os.environ["MISHKIT_ENABLE"] = "1"  # for the processes that it starts
        enable()
    if "--recompute" in options:
        from mishkit.recompute.everywhere import recompute_everywhere

        recompute_everywhere()
    if arguments[0] == "-m":
        module, code = _module(arguments[1])
        sys.argv = [module.__file__ or arguments[1], *arguments[2:]]
    else:
        module, code = _script(arguments[0])
        sys.argv = arguments
    _run(module, code)


def _script(path: str) -> tuple[ModuleType, CodeType]:
    """A file with Python code, or a folder or archive with a `__main__.py`."""
    importer = pkgutil.get_importer(path)
    if importer is not None:
        _set_first_path(os.path.abspath(path))
        spec = importer.find_spec("__main__", None)
        if spec is None:
            sys.exit(f"mishkit run: can't find '__main__' module in {path!r}")
        return _of_spec(spec)
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        print(
            f"mishkit run: can't open file {os.path.abspath(path)!r}: "
            f"[Errno {error.errno}] {error.strerror}",
            file=sys.stderr,
        )
        sys.exit(NOT_FOUND)
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    module = ModuleType("__main__")
    module.__file__ = os.path.abspath(path)
    module.__loader__ = importlib.machinery.SourceFileLoader("__main__", module.__file__)
    module.__package__ = None
    return module, _compiled(source, module.__file__)


def _module(name: str) -> tuple[ModuleType, CodeType]:
    """A module by its name, or a package's `__main__`."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{name}.__main__"
            spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        sys.exit(f"mishkit run: {error}")
    if spec is None:
        sys.exit(f"mishkit run: No module named {name}")
    return _of_spec(spec)


def _of_spec(spec: importlib.machinery.ModuleSpec) -> tuple[ModuleType, CodeType]:
    module = ModuleType("__main__")
    module.__spec__ = spec
    module.__file__ = spec.origin
    module.__loader__ = spec.loader
    module.__package__ = spec.parent
    get_code = getattr(spec.loader, "get_code", None)
    code = get_code(spec.name) if get_code is not None else None
    if code is None:
        sys.exit(f"mishkit run: no code for {spec.name}")
    return module, code


def _set_first_path(path: str) -> None:
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = path


def _compiled(source: bytes, path: str) -> CodeType:
    try:
        return compile(source, path, "exec", dont_inherit=True)
    except SyntaxError as error:
        sys.excepthook(type(error), error.with_traceback(None), None)
        sys.exit(1)


def _run(module: ModuleType, code: CodeType) -> None:
    """Run the code as `__main__`; what it raises is shown without the frames of this file."""
    ours = sys.modules["__main__"]  # kept alive: it is still running
    sys.modules["__main__"] = module
    try:
        exec(code, module.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        assert error.__traceback__ is not None
        frames = error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(frames), frames)
        sys.exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1)
    del ours


if __name__ == "__main__":
    main(sys.argv[1:])
