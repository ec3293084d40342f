"""Import the user's modules, by file or by name, along with their neighbours."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from .. import LabError
from .errors import telling, told


def imported(place: str) -> ModuleType:
    """The module in the file "path/to/file.py", or with the name "package.module".

    The folder of the file and the current folder are searched first, as with ``python file.py`` and
    ``python -m``.

    Raises
    ------
    LabError
        if there is no such module, or for whatever it raises
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
    # A unique name, so that no module of the same name conflicts or is lost.
    spec = importlib.util.spec_from_file_location(f"_mishkit_{path.stem}", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look up their module here
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
    """The module's name, starting at the folder that holds its outermost package."""
    names = [path.stem]
    folder = path.resolve().parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    return ".".join(names)
