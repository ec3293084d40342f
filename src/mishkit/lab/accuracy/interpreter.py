"""Make Triton's interpreter behave like a GPU where it differs from all of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np


@functools.cache  # only once, since it wraps what it finds
def make_faithful() -> None:
    """Fuse fma, let minimum and maximum drop NaNs unless told otherwise, round on conversion to
    bfloat16, keep the sign of an argument −0, and allow arguments as loop bounds.

    The interpreter rounds the product inside an fma, propagates every NaN, truncates to bfloat16,
    takes its smallest number for 0 and turns an argument −0 into 0. Code that depends on these
    would be reported as wrong, and code that ignores NaN as right. In Triton 3.6 it also can't take
    an argument as the end of a loop with NumPy 2.4 or later.

    Also spend less time on the interpreter's own work, which is most of it: see `_patch_once`.
    """
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    np.seterr(divide="ignore", invalid="ignore", over="ignore")  # a GPU does not report these

    def fused(_: Any, x: Any, y: Any, z: Any) -> Any:
        # The product of two float32 is exact in float64, so there is only one rounding that
        # matters.
        wide = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data.astype(np.float64)
        return TensorHandle(wide.astype(x.data.dtype), z.dtype.scalar)

    def dropping(operation: Any) -> Any:
        return lambda self, lhs, rhs: self.binary_op(lhs, rhs, operation)

    cast = InterpreterBuilder.cast_impl

    def rounded(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar == tl.bfloat16 and dst_type.scalar == tl.float32:
            wide = src.data.astype(np.uint32) << 16
            return TensorHandle(wide.view(np.float32), dst_type.scalar)
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            bits = src.data.view(np.uint32)
            up = bits + 0x7FFF + ((bits >> 16) & 1)
            # A NaN's fraction must not carry into its sign.
            upper = np.where(np.isnan(src.data), bits | 0x400000, up) >> 16
            return TensorHandle(upper.astype(np.uint16), dst_type.scalar)
        return cast(self, src, dst_type)

    InterpreterBuilder.create_fma = fused
    InterpreterBuilder.create_minnumf = dropping(np.fmin)
    InterpreterBuilder.create_maxnumf = dropping(np.fmax)
    InterpreterBuilder.cast_impl = rounded

    convert = interpreter._implicit_cvt

    def signed(argument: Any) -> Any:
        if type(argument) is float:
            return tl.tensor(TensorHandle(np.array([argument], np.float32), tl.float32), tl.float32)
        return convert(argument)

    interpreter._implicit_cvt = signed

    patch = interpreter._patch_lang_tensor

    def counting(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = counting
    _patch_once(interpreter)


def _patch_once(interpreter: Any) -> None:
    """Prepare Triton's language for the interpreter once a launch, from a list of its functions.

    The interpreter does so for each call of a function inside a kernel too, and looks through the
    whole language each time.
    """
    import triton.language as tl

    patch: Callable[[FunctionType], Any] = interpreter._patch_lang
    patched: set[str] = set()
    """The modules that are prepared while a kernel runs."""

    @functools.cache
    def builtins(package: Any) -> list[tuple[str, Any]]:
        return [pair for pair in inspect.getmembers(package) if tl.core.is_builtin(pair[1])]

    def patch_builtins(package: Any, *how: Any) -> None:
        for name, member in builtins(package):
            interpreter._patch_attr(package, name, member, *how)

    @functools.cache
    def modules(function: FunctionType) -> frozenset[str]:
        seen = function.__globals__.values()
        return frozenset(m.__name__ for m in (tl, tl.core) if any(value is m for value in seen))

    def patch_what_is_not(function: FunctionType) -> Any:
        if patched and modules(function) <= patched:
            return interpreter._LangPatchScope()  # with nothing to restore
        scope = patch(function)
        if not patched:  # a launch, which restores the language in the end
            restore = scope.restore

            def restored() -> None:
                patched.clear()
                restore()

            scope.restore = restored
        patched.update(modules(function))
        return scope

    interpreter._patch_builtin = patch_builtins
    interpreter._patch_lang = patch_what_is_not
