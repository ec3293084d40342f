"""The CPU kernels: find the compiled library and load it over the plain-torch operators."""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.autograd import Function

from .._torch_private import CPU_KERNELS

LIBRARY = Path(__file__).parent.parent / "_kernels.so"
OLDEST_TORCH = (2, 10)
"""The first release that has every entry point of the stable C ABI that the library uses."""
VARIABLE = "MISHKIT_CPU_ISA"
"""The environment variable that forces an instruction set, or "none" for plain torch."""

OVERRIDES = ("mish", "silu", "gelu", "hardswish")
"""The functions of torch that the library can compute in torch's place, for dense CPU tensors.
Softplus and the gradient of relu take a Scalar, which torch's stable C ABI can't pass.
"""

_handle: ctypes.CDLL | None = None
_overridden: frozenset[str] = frozenset()


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
    library.mishkit_answer.argtypes = (ctypes.c_char_p, ctypes.c_bool)
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


def answer(functions: Collection[str]) -> None:
    """When torch's own operators are called, let our kernels compute these of `OVERRIDES` and torch
    the others. Without the library this does nothing. Only one thread at a time may call it.
    """
    if _handle is None:
        return
    if functions and not _overridden:
        _override()
    for name in OVERRIDES:
        _handle.mishkit_answer(name.encode(), name in functions)


def overridden() -> frozenset[str]:
    """The overloads of torch's operators that are overridden, whether or not we answer them now."""
    return _overridden


def _override() -> None:
    """Register our kernels in place of torch's."""
    global _overridden
    kernels = _torchs_kernels()
    overloads = (ctypes.c_char_p * len(kernels))(*(name.encode() for name in kernels))
    torchs = (ctypes.c_void_p * len(kernels))(*kernels.values())
    # PyDLL keeps Python's lock, so that other threads don't begin a call meanwhile.
    library = ctypes.PyDLL(str(LIBRARY))
    library.mishkit_override.restype = ctypes.c_bool

    class Register(Function):
        """Within a call of torch its warnings are Python's; elsewhere they are printed."""

        @staticmethod
        def forward(ctx: Any) -> None:
            if not library.mishkit_override(overloads, torchs, len(kernels)):
                raise RuntimeError("mishkit.enable: torch's operators can't be overridden")

    with warnings.catch_warnings():
        # torch warns once a process about kernels that replace its own.
        warnings.simplefilter("ignore")
        Register.apply()
    _overridden = frozenset(kernels)


def _torchs_kernels() -> dict[str, int]:
    """The address of torch's own kernel for each overload that this torch has."""
    assert _handle is not None
    addresses = {}
    for overload, symbols in CPU_KERNELS.items():
        for symbol in symbols:
            # Our library is linked to torch's, so their symbols are found through it.
            with suppress(AttributeError):
                address = ctypes.cast(getattr(_handle, symbol), ctypes.c_void_p).value
                assert address is not None
                addresses[overload] = address
    return addresses
