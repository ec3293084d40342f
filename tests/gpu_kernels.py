"""Triton kernels that are compiled for GPUs, good ones and one for every fault, and a function that
runs in the interpreter."""

from __future__ import annotations

import triton
import triton.language as tl

from mishkit.lab.code import inductor
from mishkit.lab.code.gpu import Build


@triton.jit
def relu(x):
    return tl.maximum(x, 0.0)


@triton.jit
def exp(x):
    return tl.exp(x)


@triton.jit
def in_float64(x):
    # float32 has no such number, so all that meets it is computed in float64.
    return tl.maximum(x, 1e-39).to(tl.float32)


@triton.jit
def rounded(x):
    # Square root and division to the last bit: a short way, and a call for the inputs it can't do.
    return tl.sqrt_rn(tl.div_rn(1.0, x))


@triton.jit
def mapped(X, Y, n, function: tl.constexpr, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = start + tl.arange(0, BLOCK)
    if start + BLOCK <= n:
        y = function(tl.load(X + at).to(tl.float32))
        tl.store(Y + at, y.to(Y.dtype.element_ty))
    else:
        y = function(tl.load(X + at, mask=at < n).to(tl.float32))
        tl.store(Y + at, y.to(Y.dtype.element_ty), mask=at < n)


@triton.jit
def masked(X, Y, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(Y + at, tl.load(X + at, mask=at < n), mask=at < n)


@triton.jit
def packed(X, B, n, BLOCK: tl.constexpr):
    """A bit an element: eight of them a byte."""
    row = tl.program_id(0) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
    bit = tl.arange(0, 8)[None, :]
    x = tl.load(X + row[:, None] * 8 + bit)
    tl.store(B + row, tl.sum((x > 0).to(tl.int32) << bit, axis=1).to(tl.uint8))


@triton.jit
def repeated(X, Y, n, times, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(X + at).to(tl.float32)
    for _ in range(times):
        y = tl.exp(y)
    tl.store(Y + at, y.to(Y.dtype.element_ty))


FUNCTIONS = {f.__name__: f for f in (relu, exp, in_float64, rounded)}
POINTERS = {"float32": ("*fp32", 4), "bfloat16": ("*bf16", 2)}


def build(function: str, body: str, dtype: str, target: str) -> Build | None:
    """`body` tells what is different: nothing ("whole"), or what the kernel lacks. "F.mish" and the
    like are inductor's kernels."""
    if function.startswith(inductor.PREFIX):
        return inductor.build(function, body, dtype, target)
    if body == "none":
        return None
    pointer, size = POINTERS[dtype]
    # The more warps, the fewer registers each has: then little code spills them.
    warps, elements_each = (16, 64) if body == "spilled" else (4, 32 // size)
    elements = warps * (64 if target.startswith("gfx") else 32) * elements_each
    signature = {"X": pointer, "Y": pointer, "n": "i64"}
    constants: dict[str, object] = {"BLOCK": elements}
    kernel = mapped
    if body == "masked":
        kernel = masked
    elif body == "packed":
        kernel, signature = packed, {"X": pointer, "B": "*u8", "n": "i64"}
    elif body == "repeated":
        kernel, signature = repeated, {**signature, "times": "i32"}
    elif body == "broken":
        constants["function"] = "no function"
    else:
        constants["function"] = FUNCTIONS[function]
    return Build(
        kernel=kernel,
        signature={**signature, **dict.fromkeys(sorted(constants, reverse=True), "constexpr")},
        constexprs=constants,
        num_warps=warps,
        elements=elements,
        bytes_per_element=size + 1 / 8 if body == "packed" else 2 * size,
        aligned=() if body == "unaligned" else tuple(s for s in signature if s in "XYB"),
    )


# ---- a·x + b·x², with a and b trained ----


@triton.jit
def two_numbers(p):
    return p[0], p[1]


@triton.jit
def two_df(x, c, half):
    return c[0] + 2.0 * c[1] * x


@triton.jit
def two_dp(x, c, half):
    return x, x * x
