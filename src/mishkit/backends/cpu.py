"""The CPU kernels: find the compiled library and load it over the plain-torch operators."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

LIBRARY = Path(__file__).parent.parent / "_kernels.so"
OLDEST_TORCH = (2, 10)
"""The first release that has every entry point of the stable C ABI that the library uses."""
VARIABLE = "MISHKIT_CPU_ISA"
"""The environment variable that forces an instruction set, or "none" for plain torch."""

_handle: ctypes.CDLL | None = None


def load() -> None:
    """Load the library and choose its instruction set; warn once if plain torch has to be used."""
    wanted = os.environ.get(VARIABLE)
    if wanted == "none":
        return
    reason = _unavailable() or _register()
    if reason:
        warnings.warn(
            f"mishkit runs on plain torch, slowly: {reason}", RuntimeWarning, stacklevel=2
        )
    elif wanted:
        use(wanted)


def _register() -> str | None:
    """Load the library, which registers its kernels; returns what went wrong, if anything."""
    global _handle
    try:
        torch.ops.load_library(LIBRARY)
        library = ctypes.CDLL(str(LIBRARY))
        names = ("mishkit_isas", "mishkit_isa", "mishkit_failure", "mishkit_compiler")
        for name in names:
            getattr(library, name).restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        return f"its kernels do not load ({error})"
    failure: bytes = library.mishkit_failure()
    if failure:
        return f"its kernels can't be registered ({failure.decode()})"
    _handle = library
    return None


def _unavailable() -> str | None:
    if not LIBRARY.exists():
        return "its kernels were not built when it was installed (pip install -v says why)"
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        return f"its kernels need torch 2.10 or later, this is {torch.__version__}"
    return None


def isas() -> list[str]:
    """The instruction sets that both this library and this CPU support, the best one last."""
    return _handle.mishkit_isas().decode().split() if _handle else []


def isa() -> str:
    """The instruction set in use; "none" if plain torch is used."""
    return _handle.mishkit_isa().decode() if _handle else "none"


def compiler() -> str:
    """The compiler that built the library; "none" if plain torch is used."""
    return _handle.mishkit_compiler().decode() if _handle else "none"


def use(name: str) -> None:
    """Switch to another instruction set, for every thread."""
    if name not in isas():
        raise ValueError(f"{VARIABLE}: this CPU has {', '.join(isas()) or 'none'}; not {name!r}")
    assert _handle is not None
    _handle.mishkit_use_isa(name.encode())


@contextmanager
def using(name: str) -> Iterator[None]:
    """Use an instruction set within a block."""
    before = isa()
    use(name)
    try:
        yield
    finally:
        use(before)
