"""Modules of the user's, by file or by name, with their neighbours."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from .. import LabError
from .errors import telling, told


def imported(place: str) -> ModuleType:
    """The module in the file "path/to/file.py", or of the name "package.module".

    The current folder, and before it that of the file, are looked in first, as by ``python -m`` and
    ``python file.py``.

    Raises
    ------
    LabError
        if there is none, or whatever it raises
    """
    if not place.endswith(".py"):
        _look_in(Path.cwd())
        with telling(f"{place} can't be imported"):
            return importlib.import_module(place)
    path = Path(place)
    if not path.is_file():
        raise LabError(f"there is no file {place}")
    _look_in(Path.cwd())
    _look_in(path.resolve().parent)
    # A name of its own, so that no module of the same name is in the way or lost.
    spec = importlib.util.spec_from_file_location(f"_mishkit_{path.stem}", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look for their module there
    with telling(f"{place} can't be imported"):
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            if "relative import" not in str(error):
                raise
            raise LabError(
                f"{told(error)}; a module of a package has a name: {_dotted(path)}:FUNCTION"
            ) from error
    return module


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _dotted(path: Path) -> str:
    """The module's name from the folder that holds its outermost package."""
    names = [path.stem]
    folder = path.resolve().parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    return ".".join(names)
