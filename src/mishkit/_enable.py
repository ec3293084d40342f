"""torch's own operators answered by our kernels: `enable`, `disable`, `enabled`."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .backends import cpu

VARIABLE = "MISHKIT_ENABLE"
"""The environment variable that enables all functions ("1") or some ("mish,silu") on import."""

_UNABLE = "torch's stable C ABI can't pass its numbers"
_LEFT_TO_TORCH = {
    "relu": "torch's own is as fast",
    "relu6": _UNABLE,  # it is torch's hardtanh
    "leaky_relu": _UNABLE,
    "elu": _UNABLE,
    "softplus": _UNABLE,
}
"""Functions that one may look for here, with the reason why torch's own operators keep them."""


class _State:
    """What is enabled: process-wide, like torch's operators."""

    def __init__(self) -> None:
        self.always: frozenset[str] = frozenset()
        """Enabled until `disable`,"""
        self.calls: dict[int, frozenset[str]] = {}
        """or by calls whose result may still begin a block,"""
        self.blocks: Counter[str] = Counter()
        """or by that many blocks."""

    def names(self) -> frozenset[str]:
        return self.always.union(*self.calls.values(), +self.blocks)

    def apply(self) -> None:
        cpu.answer(self.names())


_state = _State()
_lock = threading.RLock()  # the garbage collector may delete an `Enabled` at any time

if hasattr(os, "register_at_fork"):  # no child shall find the lock held by a thread it doesn't have
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


class Enabled:
    """What `enable` returns: as a context manager, it enables the functions for a block only."""

    def __init__(self, functions: frozenset[str]) -> None:
        self.functions = functions
        self._called_in = _state
        self._entered_in: list[_State] = []
        _state.calls[id(self)] = functions

    def __enter__(self) -> Enabled:
        with _lock:
            self._called_in.calls.pop(id(self), None)
            _state.blocks.update(self.functions)
            self._entered_in.append(_state)
            _state.apply()
        return self

    def __exit__(self, *_: Any) -> None:
        with _lock:
            if self._entered_in.pop() is _state:  # unless `disable` has ended the block
                _state.blocks.subtract(self.functions)
                _state.apply()

    def __del__(self) -> None:
        with _lock:
            if self._called_in.calls.pop(id(self), None):  # no block has begun, nor can it now
                self._called_in.always |= self.functions

    def __repr__(self) -> str:
        return f"<mishkit.enable: {', '.join(sorted(self.functions)) or 'nothing'}>"


class Disabled:
    """What `disable` returns: as a context manager, it disables everything for a block."""

    def __init__(self, before: _State) -> None:
        self._before = before

    def __enter__(self) -> Disabled:
        return self

    def __exit__(self, *_: Any) -> None:
        _set(self._before)

    def __repr__(self) -> str:
        return "<mishkit.disable>"


def enable(functions: str | Iterable[str] | None = None) -> Enabled:
    """Compute torch's own activation functions with our kernels, in this whole process.

    Programs need not change: `torch.nn.functional.mish`, `torch.nn.SiLU`, ``x.gelu_()`` and every
    model of every library become faster on CPUs. The operators ``aten::mish``, ``silu``, ``gelu``
    (both forms) and ``hardswish`` are answered by our kernels for dense CPU tensors of float32,
    float64, bfloat16 and float16: as functions, in place, with ``out=``, and in backward passes.
    Everything else goes to torch's own kernels, as before: other devices and dtypes, sparse,
    nested and quantised tensors, results that have to be resized or converted, and gelu in float64,
    where torch is faster. Autograd's nodes stay torch's own. So double backward, forward mode,
    `torch.func`, hooks, `torch.compile`, `torch.jit` and saved models are not affected::

        mishkit.enable()
        ...
        mishkit.disable()  # torch's own kernels compute again

        with mishkit.enable("mish"):
            ...

    Nothing is printed. Enabling twice is the same as enabling once. It affects all threads, may be
    called from any of them, and survives a fork. A spawned process starts with torch's own kernels;
    set the environment variable ``MISHKIT_ENABLE=1`` before the program starts to enable every
    process in which torch is imported. Make the first call before other threads compute: torch
    can't exchange a kernel safely while another thread's backward pass or compiled graph calls it.
    (Later calls, and `disable`, only set flags.)

    Results differ from torch's in the last digits. Gradients also differ at ±inf, where ours are
    the limits and torch's NaN. For hardswish they differ at 3, where f' jumps (ours is 1.5, torch's
    1), and for a NaN input (ours is NaN, torch's 1).

    Parameters
    ----------
    functions : str or iterable of str, optional
        ``"mish"``, ``"silu"``, ``"gelu"``, ``"hardswish"``; all of them if not given

    Returns
    -------
    Enabled
        a context manager that disables at its end what this call enabled

    Raises
    ------
    ValueError
        if there is no such function
    TypeError
        if `functions` is neither a string nor an iterable of strings

    Notes
    -----
    relu6, leaky_relu, elu, softplus and the gradient of relu stay with torch, whose stable C ABI
    can't pass the numbers they take. Where mishkit has no kernels (see `mishkit.functional`),
    nothing happens.
    """
    names = _names(functions)
    with _lock:
        result = Enabled(names)
        _state.apply()
    return result


def disable() -> Disabled:
    """Compute torch's own activation functions with torch's own kernels again, in all threads.

    Ends every `enable`, including those of blocks that are still running.

    Returns
    -------
    Disabled
        a context manager that enables at its end what was enabled before
    """
    return Disabled(_set(_State()))


def enabled() -> tuple[str, ...]:
    """The functions of torch that our kernels compute now, in alphabetical order.

    Returns
    -------
    tuple of str
        names as for `enable`; empty where mishkit has no kernels
    """
    return tuple(sorted(_state.names())) if cpu.overridden() else ()


def enable_from_environment() -> None:
    """Enable what the environment variable says, if it is set."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted in ("", "0"):
        return
    try:
        enable(None if wanted == "1" else wanted.replace(" ", "").split(","))
    except ValueError as error:
        raise ValueError(f"{VARIABLE}: {error}") from None


def _set(state: _State) -> _State:
    """Exchange the whole state; returns the one before."""
    global _state
    with _lock:
        before, _state = _state, state
        _state.apply()
    return before


def _names(functions: str | Iterable[str] | None) -> frozenset[str]:
    if functions is None:
        return frozenset(cpu.OVERRIDES)
    names = [functions] if isinstance(functions, str) else list(functions)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"mishkit.enable: functions must be names, not {name!r}")
        if name not in cpu.OVERRIDES:
            reason = _LEFT_TO_TORCH.get(name)
            why = f"{name} is left to torch: {reason}" if reason else f"there is no {name!r}"
            raise ValueError(f"mishkit.enable: {why}; there are {', '.join(cpu.OVERRIDES)}")
    return frozenset(names)
