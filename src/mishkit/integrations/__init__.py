"""Callbacks for training libraries, each in a module that is imported when it is used:

- `mishkit.integrations.lightning`: `Lean`, `AnnealCallback`
- `mishkit.integrations.transformers`: `LeanCallback`, `AnnealCallback`
"""

from importlib import import_module
from types import ModuleType

__all__ = ["lightning", "transformers"]


def __getattr__(name: str) -> ModuleType:
    """Import the module for a library only when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f".{name}", __name__)
