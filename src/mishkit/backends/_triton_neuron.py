"""The APTx layer's operators as Triton kernels, for float32, bfloat16 and float16 on a GPU.

    layer(input, alpha, beta, gamma, delta) -> output
    layer_backward(grad, input, alpha, beta, gamma, with_input)
        -> (grad_input, grad_alpha, grad_beta, grad_gamma)

Shapes are those of `mishkit.ops.neuron`. Everything is computed in float32. With e = 2^−|z|, z =
2·log₂e·βx, and r = 1/(1 + e),

    |tanh(βx)| = (1 − e)·r,    1 − tanh²(βx) = 4·e·r²

so nothing overflows: e is at most 1, and 0 where βx is large. A tanh is accurate to 2e-7, given an
exp2 with a relative error of 2^−22.5 and a reciprocal accurate to one unit in the last place. Its
derivative has the relative accuracy of e, however small it is. Where scaling a β or x beyond 8e37
would overflow, it is left unscaled and so counts up to four times less: finite numbers must not
become infinite.

The bottleneck is the unit for exp2 and reciprocals, of which each term needs two. The kernels keep
the other instructions within the time this leaves, and use each loaded number for many terms.

Sizes other than the batch's are below 2³¹; products of sizes may be larger.

No tensor of batch × out × in elements is held. Each sum is computed by one program, without
atomics, in an order that depends only on the sizes: sums of up to BLOCK terms per lane, and then
sums of those. A row's results do not depend on the other rows. Besides the results, backward takes
12 bytes per parameter and chunk of the batch, at most 12 MiB, and nothing if there is only one
chunk.

α's gradient is γ·(gradᵀ·input). It is computed along with the others instead of by torch.mm: grad
and input are already loaded, it costs one FMA out of about a dozen instructions while waiting for
the exponential unit, and it is unaffected by TF32 settings.
"""

# Kernels can't have Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..functions.gpu._math import divide
from .triton import WARPS, on_device

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
"""The dtypes that the kernels support, with Triton's names."""

# The tiles were chosen by inspecting the compiled code: no spills from sm_75 to sm_100, and in the
# inner loops of the largest tiles, with float32, at most the 16 instructions per term that fit
# beside two special-function ones.
ROWS, OUTS, COLUMNS = (8, 4, 2, 1), 16, 32
"""For a forward program: rows (the first choice that fits), outputs, and columns at a time. A lane
handles one column and ROWS·OUTS/WARPS sums, so that parameters are read in memory order.
"""
INPUT_ROWS, INPUT_COLUMNS = (32, 16, 8), 64
"""For a program computing the input's gradient, which takes one output at a time."""
PARAMETER_OUTS, PARAMETER_COLUMNS = 16, 64
"""For a program computing the parameters' gradients, which takes one row at a time."""
FORWARD_BLOCK, INPUT_BLOCK, PARAMETER_BLOCK = 32 * COLUMNS, 128, 128
"""How many columns, outputs or rows are summed before the sum is added to the others."""
UNROLL = 2
"""How far the loops over single outputs and rows are unrolled."""
COMBINED = 512
"""Parameters per program when adding up the chunks of the batch."""
ENOUGH_PROGRAMS = 1024
"""The batch is split into chunks up to this many programs: several for each processor of a GPU."""
FEW_PROGRAMS = 256
"""With fewer programs, some processors of a large GPU would be idle."""
LEAST_ROWS = 64
"""Rows per chunk of the batch: with fewer, adding up the chunks would take noticeable time."""

# ---- formulas ----------------------------------------------------------------------------------

QUARTER_SCALE = tl.constexpr(-0.7213475204444817)
TWO_LOG2_E = tl.constexpr(2.8853900817779268)
LARGEST = tl.constexpr(3.4e38)
SIGN = tl.constexpr(-(2**31))


@triton.jit
def _scaled(x, factor: tl.constexpr):
    """factor·x, or x if that would overflow: finite numbers must not lead to inf times 0."""
    return tl.where(tl.abs(x) > LARGEST / factor, x, x * factor)


@triton.jit
def _with_sign_of(x, y):
    """x·sign(y), in one instruction, and correct for NaN too."""
    sign = y.to(tl.int32, bitcast=True) & SIGN
    return (x.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit
def _tanh(z):
    """|tanh(βx)| and (1 − tanh²(βx))/4 for z = −2·log₂e·|βx|."""
    e = tl.exp2(z)
    r = divide(1.0, 1.0 + e)
    w = e * r
    # 2r − 1 would double the error of r where tanh is small.
    return r - w, w * r


@triton.jit
def _load(pointers):
    return tl.load(pointers).to(tl.float32)


@triton.jit
def _store(pointers, values, mask):
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask)


@triton.jit
def _places(tile, size, SIZE: tl.constexpr):
    """The indices of a tile, which of them exist, and indices that are safe to load from: those
    beyond the end wrap around. Wrapped values are computed with but never stored. Unlike a minimum,
    a remainder keeps neighbours adjacent, so they are loaded together.
    """
    at = tile * SIZE + tl.arange(0, SIZE)
    return at.to(tl.int64), at < size, (at % size).to(tl.int64)


@triton.jit
def _rows(tile, batch, ROWS: tl.constexpr):
    """The same for rows, which may be more than 2³¹; rows beyond the end use the last row."""
    at = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return at, at < batch, tl.minimum(at, batch - 1)


@triton.jit
def _wide(size):
    """As 64 bits, for products; a size of 1 is a constant in a kernel and has no `to`."""
    return tl.full((), size, tl.int64)


# ---- kernels -----------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["batch"])
def _forward_kernel(
    input_,
    alpha,
    beta,
    gamma,
    delta,
    output,
    batch,
    dims_in,
    dims_out,
    HAS_DELTA: tl.constexpr,
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Rows vary fastest, so programs that run at the same time share parameters.
    down = tl.cdiv(batch, ROWS)
    rows, is_row, row = _rows(tl.program_id(0) % down, batch, ROWS)
    outs, is_out, out = _places(tl.program_id(0) // down, dims_out, OUTS)
    inputs = input_ + row[:, None] * dims_in
    parameters = out[:, None] * dims_in
    total = tl.zeros((ROWS, OUTS, COLUMNS), tl.float32)
    for begin in range(0, dims_in, BLOCK):
        part = tl.zeros((ROWS, OUTS, COLUMNS), tl.float32)
        for start in range(begin, tl.minimum(begin + BLOCK, dims_in), COLUMNS):
            column = (start + tl.arange(0, COLUMNS))[None, :]
            is_column = column < dims_in
            at = parameters + column
            x = tl.load(inputs + column, is_column, 0.0).to(tl.float32)
            a = tl.load(alpha + at, is_column, 0.0).to(tl.float32)
            b = tl.load(beta + at, is_column, 0.0).to(tl.float32)
            c = tl.load(gamma + at, is_column, 0.0).to(tl.float32)
            linear = a * c
            slope = _with_sign_of(c, b)
            scale = -tl.abs(_scaled(b, TWO_LOG2_E))
            x = x[:, None, :]
            t, _ = _tanh(scale[None, :, :] * tl.abs(x))
            t = _with_sign_of(t, x)
            part += (t * slope[None, :, :] + linear[None, :, :]) * x
        total += part
    y = tl.sum(total, 2)
    if HAS_DELTA:
        y += _load(delta + out)[None, :]
    at = rows[:, None] * dims_out + outs[None, :]
    _store(output + at, y, is_row[:, None] & is_out[None, :])


@triton.jit(do_not_specialize=["batch"])
def _input_kernel(
    grad,
    input_,
    alpha,
    beta,
    gamma,
    grad_input,
    batch,
    dims_in,
    dims_out,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Σ_o g·(αγ + sign(β)γ·(t′ + |β|·x·(1 − t²))), t′ = tanh(|β|x)."""
    down = tl.cdiv(batch, ROWS)
    rows, is_row, row = _rows(tl.program_id(0) % down, batch, ROWS)
    columns, is_column, column = _places(tl.program_id(0) // down, dims_in, COLUMNS)
    x = _scaled(_load(input_ + row[:, None] * dims_in + column[None, :]), 4.0)
    size = tl.abs(x)
    grads = grad + row * dims_out
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for begin in range(0, dims_out, BLOCK):
        part = tl.zeros((ROWS, COLUMNS), tl.float32)
        at = column + begin * _wide(dims_in)
        for out in tl.range(begin, tl.minimum(begin + BLOCK, dims_out), loop_unroll_factor=UNROLL):
            g = _load(grads + out)[:, None]
            a, b, c = _load(alpha + at), _load(beta + at), _load(gamma + at)
            linear, slope = (a * c)[None, :], _with_sign_of(c, b)[None, :]
            steep = tl.abs(b)
            scale = (steep * QUARTER_SCALE)[None, :]
            t, h = _tanh(scale * size)
            bend = h * x * steep[None, :] + _with_sign_of(t, x)
            part += g * (slope * bend + linear)
            at += dims_in
        total += part
    at = rows[:, None] * dims_in + columns[None, :]
    _store(grad_input + at, total, is_row[:, None] & is_column[None, :])


@triton.jit
def _finish(alpha, beta, gamma, grad_alpha, grad_beta, grad_gamma, at, mask, s0, s1, s2):
    """The parameters' gradients from the sums of g·x, g·|x|·|tanh| and g·x²·(1 − tanh²)/4."""
    a = tl.load(alpha + at, mask, 0.0).to(tl.float32)
    b = tl.load(beta + at, mask, 0.0).to(tl.float32)
    c = tl.load(gamma + at, mask, 0.0).to(tl.float32)
    _store(grad_alpha + at, c * s0, mask)
    _store(grad_beta + at, c * (s2 * 4.0), mask)
    _store(grad_gamma + at, a * s0 + _with_sign_of(s1, b), mask)


@triton.jit(do_not_specialize=["batch", "chunk_rows"])
def _parameters_kernel(
    grad,
    input_,
    alpha,
    beta,
    gamma,
    grad_alpha,
    grad_beta,
    grad_gamma,
    sums,
    batch,
    dims_in,
    dims_out,
    chunk_rows,
    IS_ONE_CHUNK: tl.constexpr,
    OUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The sums that `_finish` takes, over a chunk of the batch, stored as (chunk, 3, out, in); or
    the finished gradients if there is one chunk.
    """
    across = tl.cdiv(dims_out, OUTS)
    tiles = across * tl.cdiv(dims_in, COLUMNS)
    chunk, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    outs, is_out, out = _places(tile % across, dims_out, OUTS)
    columns, is_column, column = _places(tile // across, dims_in, COLUMNS)
    b = _load(beta + out[:, None] * dims_in + column[None, :])
    scale = -tl.abs(_scaled(b, TWO_LOG2_E))
    first = chunk.to(tl.int64) * chunk_rows
    last = tl.minimum(first + chunk_rows, batch)
    # Zeros in the layout of β: with another layout the compiler would load everything twice.
    zeros = tl.where(tl.abs(b) < 0.0, 1.0, 0.0)
    s0 = zeros
    s1 = tl.zeros((OUTS, COLUMNS), tl.float32)
    s2 = tl.zeros((OUTS, COLUMNS), tl.float32)
    for begin in range(first, last, BLOCK):
        part0 = zeros
        part1 = tl.zeros((OUTS, COLUMNS), tl.float32)
        part2 = tl.zeros((OUTS, COLUMNS), tl.float32)
        grads = grad + begin * dims_out + out
        inputs = input_ + begin * dims_in + column
        for _ in tl.range(begin, tl.minimum(begin + BLOCK, last), loop_unroll_factor=UNROLL):
            g, x = _load(grads)[:, None], _load(inputs)[None, :]
            size = tl.abs(x)
            t, h = _tanh(scale * size)
            gx = g * size
            part0 += g * x
            part1 += gx * t
            part2 += gx * (h * size)
            grads += dims_out
            inputs += dims_in
        s0 += part0
        s1 += part1
        s2 += part2
    at = outs[:, None] * dims_in + columns[None, :]
    mask = is_out[:, None] & is_column[None, :]
    if IS_ONE_CHUNK:
        _finish(alpha, beta, gamma, grad_alpha, grad_beta, grad_gamma, at, mask, s0, s1, s2)
    else:
        numel = _wide(dims_out) * dims_in
        sums += 3 * chunk * numel + at
        tl.store(sums, s0, mask)
        tl.store(sums + numel, s1, mask)
        tl.store(sums + 2 * numel, s2, mask)


@triton.jit(do_not_specialize=["chunks"])
def _combine_kernel(
    sums,
    alpha,
    beta,
    gamma,
    grad_alpha,
    grad_beta,
    grad_gamma,
    numel,
    chunks,
    COMBINED: tl.constexpr,
):
    """Adds up the chunks' sums, in order. (Only for few parameters; others have one chunk.)"""
    at, mask, place = _places(tl.program_id(0), numel, COMBINED)
    s0 = tl.zeros((COMBINED,), tl.float32)
    s1 = tl.zeros((COMBINED,), tl.float32)
    s2 = tl.zeros((COMBINED,), tl.float32)
    for _ in range(chunks):
        s0 += tl.load(sums + place)
        s1 += tl.load(sums + numel + place)
        s2 += tl.load(sums + 2 * numel + place)
        sums += 3 * numel
    _finish(alpha, beta, gamma, grad_alpha, grad_beta, grad_gamma, at, mask, s0, s1, s2)


# ---- calls -------------------------------------------------------------------------------------


def layer(input: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, delta: Tensor) -> Tensor:
    """y_o = Σ_i (α_oi + tanh(β_oi·x_i))·γ_oi·x_i + δ_o; see `mishkit.ops.neuron` for the shapes.

    Raises RuntimeError if shapes or dtypes don't match.
    """
    _check(input, alpha, beta, gamma)
    batch, dims_in, dims_out = *input.shape, gamma.shape[0]
    if delta.dtype != input.dtype or delta.shape not in ((0,), (dims_out,)):
        _refuse("delta must have the input's dtype and one element an output, or none")
    output = input.new_empty(batch, dims_out)
    if not output.numel():
        return output
    if not dims_in:
        return output.copy_(delta) if delta.numel() else output.zero_()
    rows = _rows_for(ROWS, batch, triton.cdiv(dims_out, OUTS))
    with on_device(input):
        _forward_kernel[(triton.cdiv(batch, rows) * triton.cdiv(dims_out, OUTS),)](
            *(t.contiguous() for t in (input, alpha, beta, gamma, delta)),
            output,
            batch,
            dims_in,
            dims_out,
            **_forward_constants(rows, bool(delta.numel())),
            num_warps=WARPS,
        )
    return output


def layer_backward(
    grad: Tensor, input: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, with_input: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of input (empty unless with_input), alpha, beta and gamma.

    Raises RuntimeError if shapes or dtypes don't match.
    """
    _check(input, alpha, beta, gamma)
    batch, dims_in, dims_out = *input.shape, gamma.shape[0]
    if grad.dtype != input.dtype or grad.shape != (batch, dims_out):
        _refuse("grad must have the input's dtype and the output's shape")
    to_input = input.new_empty(input.shape if with_input else 0)
    to_alpha, to_beta, to_gamma = to_parameters = tuple(gamma.new_empty(gamma.shape) for _ in "αβγ")
    if not batch * dims_in * dims_out:
        for gradient in (to_input, *to_parameters):
            gradient.zero_()
        return to_input, to_alpha, to_beta, to_gamma
    grad, input, *parameters = (t.contiguous() for t in (grad, input, alpha, beta, gamma))
    sizes = (batch, dims_in, dims_out)
    with on_device(input):
        if with_input:
            across = triton.cdiv(dims_in, INPUT_COLUMNS)
            rows = _rows_for(INPUT_ROWS, batch, across)
            _input_kernel[(triton.cdiv(batch, rows) * across,)](
                grad,
                input,
                *parameters,
                to_input,
                *sizes,
                **_input_constants(rows),
                num_warps=WARPS,
            )
        tiles = triton.cdiv(dims_in, PARAMETER_COLUMNS) * triton.cdiv(dims_out, PARAMETER_OUTS)
        chunks = max(1, min(ENOUGH_PROGRAMS // tiles, batch // LEAST_ROWS))
        chunk_rows = triton.cdiv(batch, chunks)
        chunks = triton.cdiv(batch, chunk_rows)
        sums = to_alpha  # not used
        if chunks > 1:
            sums = gamma.new_empty((chunks, 3, dims_out, dims_in), dtype=torch.float32)
        _parameters_kernel[(tiles * chunks,)](
            grad,
            input,
            *parameters,
            *to_parameters,
            sums,
            *sizes,
            chunk_rows,
            **_parameters_constants(chunks == 1),
            num_warps=WARPS,
        )
        if chunks > 1:
            numel = gamma.numel()
            _combine_kernel[(triton.cdiv(numel, COMBINED),)](
                sums,
                *parameters,
                *to_parameters,
                numel,
                chunks,
                COMBINED=COMBINED,
                num_warps=WARPS,
            )
    return to_input, to_alpha, to_beta, to_gamma


def _rows_for(choice: tuple[int, ...], batch: int, across: int) -> int:
    """Rows of a tile: fewer if the batch has no more, or if there would be too few programs. This
    does not change the order of any sum.
    """
    for rows in choice:
        if rows < 2 * batch and triton.cdiv(batch, rows) * across >= FEW_PROGRAMS:
            return rows
    return choice[-1]


def _forward_constants(rows: int, has_delta: bool) -> dict[str, Any]:
    return {
        "HAS_DELTA": has_delta,
        "ROWS": rows,
        "OUTS": OUTS,
        "COLUMNS": COLUMNS,
        "BLOCK": FORWARD_BLOCK,
    }


def _input_constants(rows: int) -> dict[str, Any]:
    return {"ROWS": rows, "COLUMNS": INPUT_COLUMNS, "BLOCK": INPUT_BLOCK, "UNROLL": UNROLL}


def _parameters_constants(is_one_chunk: bool) -> dict[str, Any]:
    return {
        "IS_ONE_CHUNK": is_one_chunk,
        "OUTS": PARAMETER_OUTS,
        "COLUMNS": PARAMETER_COLUMNS,
        "BLOCK": PARAMETER_BLOCK,
        "UNROLL": UNROLL,
    }


def _check(input: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor) -> None:
    if input.dtype not in DTYPES:
        _refuse("expected tensors of float32, bfloat16 or float16")
    if input.dim() != 2 or gamma.dim() != 2 or gamma.shape[1] != input.shape[1]:
        _refuse("expected an input (batch, in) and parameters (out, in)")
    for t in (alpha, beta, gamma):
        if t.dtype != input.dtype or t.shape != gamma.shape:
            _refuse("alpha, beta and gamma must have the input's dtype, and one shape")


def _refuse(reason: str) -> NoReturn:
    raise RuntimeError(f"mishkit.aptx_layer: {reason}")


# ---- what is compiled --------------------------------------------------------------------------


class Build(NamedTuple):
    """A kernel as it is launched, for compiling without a GPU."""

    name: str
    kernel: Any  # a triton.JITFunction
    signature: dict[str, str]
    """The types of all arguments, in order; those of `constants` are "constexpr"."""
    constants: dict[str, Any]
    warps: int
    terms: int
    """How many terms of the layer's sum a program computes per iteration of its innermost loop; 0
    if it computes no tanh.
    """


def builds(dtype: torch.dtype) -> Iterator[Build]:
    """Every kernel, with each of its tile sizes."""
    for rows in ROWS:
        for has_delta in (True, False):
            name = f"forward_{rows}" + ("" if has_delta else "_without_delta")
            constants = _forward_constants(rows, has_delta)
            yield _build(name, _forward_kernel, dtype, constants, rows * OUTS * COLUMNS)
    for rows in INPUT_ROWS:
        constants = _input_constants(rows)
        yield _build(f"input_{rows}", _input_kernel, dtype, constants, rows * INPUT_COLUMNS)
    for is_one_chunk in (True, False):
        name = "parameters" if is_one_chunk else "parameters_of_chunk"
        constants = _parameters_constants(is_one_chunk)
        terms = PARAMETER_OUTS * PARAMETER_COLUMNS
        yield _build(name, _parameters_kernel, dtype, constants, terms)
    yield _build("combine", _combine_kernel, dtype, {"COMBINED": COMBINED}, 0)


SIZES = ("batch", "dims_in", "dims_out", "chunk_rows", "chunks", "numel")


def _build(
    name: str, kernel: Any, dtype: torch.dtype, constants: dict[str, Any], terms: int
) -> Build:
    pointer = f"*{DTYPES[dtype]}"
    kinds = dict.fromkeys(constants, "constexpr") | dict.fromkeys(SIZES, "i32")
    kinds["sums"] = pointer if constants.get("IS_ONE_CHUNK") else "*fp32"  # if one, unused
    signature = {argument: kinds.get(argument, pointer) for argument in kernel.arg_names}
    return Build(name, kernel, signature, constants, WARPS, terms)
