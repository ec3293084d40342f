"""The kernel bodies in Triton, each written once for all functions of the family.

A program computes BLOCK elements that are adjacent in memory, in float32. All blocks except the
last are full, so their loads and stores have no mask and each thread moves 16 bytes at a time.
Program offsets are 64-bit.

The side has one bit per element, eight adjacent elements to a byte. The bodies that pack or read it
treat a block as rows of eight, so that each byte is made within one thread or two.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import triton
import triton.language as tl
from triton.language import constexpr

# ---- where a block lies --------------------------------------------------------------------------


@triton.jit
def load(pointer, at, mask):
    return tl.load(pointer + at, mask=mask).to(tl.float32)


@triton.jit
def store(pointer, at, value, mask):
    tl.store(pointer + at, value.to(pointer.dtype.element_ty), mask=mask)


# ---- f, f' and f'' -------------------------------------------------------------------------------


@triton.jit
def _forward(x, y, at, mask, c, f: constexpr, half: constexpr):
    store(y, at, f(load(x, at, mask), c, half), mask)


@triton.jit
def forward(x, y, count, c, f: constexpr, BLOCK: constexpr):
    """y = f(x)"""
    half: tl.constexpr = x.dtype.element_ty != tl.float32
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = tl.arange(0, BLOCK)
    if start + BLOCK <= count:
        _forward(x + start, y + start, at, None, c, f, half)
    else:
        _forward(x + start, y + start, at, at < count - start, c, f, half)


@triton.jit
def passed(slope, grad, dead: constexpr):
    """The gradient that passes: none where a dead function's slope is 0, even if grad is inf."""
    if dead:
        return tl.where(slope == 0, slope, slope * grad)
    else:
        return slope * grad


@triton.jit
def _backward(grad, x, result, at, mask, c, df: constexpr, dead: constexpr, half: constexpr):
    slope = df(load(x, at, mask), c, half)
    store(result, at, passed(slope, load(grad, at, mask), dead), mask)


@triton.jit
def backward(grad, x, result, count, c, df: constexpr, dead: constexpr, BLOCK: constexpr):
    """result = grad·f'(x)"""
    half: tl.constexpr = x.dtype.element_ty != tl.float32
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = tl.arange(0, BLOCK)
    if start + BLOCK <= count:
        _backward(grad + start, x + start, result + start, at, None, c, df, dead, half)
    else:
        mask = at < count - start
        _backward(grad + start, x + start, result + start, at, mask, c, df, dead, half)


@triton.jit
def _double_backward(
    grad_grad,
    grad,
    x,
    to_grad,
    to_x,
    at,
    mask,
    c,
    df: constexpr,
    d2f: constexpr,
    dead: constexpr,
    half: constexpr,
):
    of_x, outer = load(x, at, mask), load(grad_grad, at, mask)
    store(to_grad, at, passed(df(of_x, c, half), outer, dead), mask)
    store(to_x, at, passed(d2f(of_x, c, half), outer * load(grad, at, mask), dead), mask)


@triton.jit
def double_backward(
    grad_grad,
    grad,
    x,
    to_grad,
    to_x,
    count,
    c,
    df: constexpr,
    d2f: constexpr,
    dead: constexpr,
    BLOCK: constexpr,
):
    """to_grad = grad_grad·f'(x), to_x = grad_grad·grad·f''(x)"""
    half: tl.constexpr = x.dtype.element_ty != tl.float32
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = tl.arange(0, BLOCK)
    grad_grad, grad, x = grad_grad + start, grad + start, x + start
    to_grad, to_x = to_grad + start, to_x + start
    if start + BLOCK <= count:
        _double_backward(grad_grad, grad, x, to_grad, to_x, at, None, c, df, d2f, dead, half)
    else:
        mask = at < count - start
        _double_backward(grad_grad, grad, x, to_grad, to_x, at, mask, c, df, d2f, dead, half)


# ---- two functions in one ------------------------------------------------------------------------


@triton.jit
def _blend(x, y, at, mask, c, d, t, f: constexpr, g: constexpr, half: constexpr):
    of_x = load(x, at, mask)
    store(y, at, (1.0 - t) * f(of_x, c, half) + t * g(of_x, d, half), mask)


@triton.jit
def blend(x, y, count, c, d, t, f: constexpr, g: constexpr, BLOCK: constexpr):
    """y = (1 − t)·f(x) + t·g(x)"""
    half: tl.constexpr = x.dtype.element_ty != tl.float32
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = tl.arange(0, BLOCK)
    if start + BLOCK <= count:
        _blend(x + start, y + start, at, None, c, d, t, f, g, half)
    else:
        _blend(x + start, y + start, at, at < count - start, c, d, t, f, g, half)


@triton.jit
def _blend_backward(
    grad, x, result, at, mask, c, d, t,
    df: constexpr, dg: constexpr, dead: constexpr, half: constexpr,
):  # fmt: skip
    of_x = load(x, at, mask)
    slope = (1.0 - t) * df(of_x, c, half) + t * dg(of_x, d, half)
    store(result, at, passed(slope, load(grad, at, mask), dead), mask)


@triton.jit
def blend_backward(
    grad, x, result, count, c, d, t,
    df: constexpr, dg: constexpr, dead: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """result = grad·((1 − t)·f'(x) + t·g'(x))"""
    half: tl.constexpr = x.dtype.element_ty != tl.float32
    start = tl.program_id(0).to(tl.int64) * BLOCK
    at = tl.arange(0, BLOCK)
    grad, x, result = grad + start, x + start, result + start
    if start + BLOCK <= count:
        _blend_backward(grad, x, result, at, None, c, d, t, df, dg, dead, half)
    else:
        _blend_backward(grad, x, result, at, at < count - start, c, d, t, df, dg, dead, half)


# ---- gates ---------------------------------------------------------------------------------------
# A program computes BLOCK elements of one row. The rows of an array are `…_row` apart and its
# elements …_STEP apart, so that it may be half of a larger one. A row has `count` elements, which
# take `blocks` programs.


@triton.jit
def _offsets(count, blocks, BLOCK: constexpr):
    """The row of this program, where it begins there, and how many elements are left."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    return row, start, count - start


@triton.jit
def _factor(u, limit, offset, limited: constexpr):
    if limited:
        # NaN goes through, as through torch.clamp.
        u = tl.where(u > limit, limit, tl.where(u < -limit, -limit, u))
    return u + offset


@triton.jit
def _at_most(g, limit, limited: constexpr):
    if limited:
        return tl.where(g > limit, limit, g)
    else:
        return g


@triton.jit
def _gate(
    g, u, y, at, mask, c, limit, offset, f: constexpr, limited: constexpr, half: constexpr,
    G_STEP: constexpr, U_STEP: constexpr, Y_STEP: constexpr,
):  # fmt: skip
    value = f(_at_most(load(g, at * G_STEP, mask), limit, limited), c, half)
    product = value * _factor(load(u, at * U_STEP, mask), limit, offset, limited)
    store(y, at * Y_STEP, product, mask)


@triton.jit
def gate(
    g, u, y, count, blocks, g_row, u_row, y_row, c, limit, offset,
    f: constexpr, limited: constexpr,
    G_STEP: constexpr, U_STEP: constexpr, Y_STEP: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """y = f(min(g, limit))·(clamp(u, −limit, limit) + offset)"""
    half: tl.constexpr = g.dtype.element_ty != tl.float32
    row, start, left = _offsets(count, blocks, BLOCK)
    at = tl.arange(0, BLOCK)
    g += row * g_row + start * G_STEP
    u += row * u_row + start * U_STEP
    y += row * y_row + start * Y_STEP
    if left >= BLOCK:
        _gate(g, u, y, at, None, c, limit, offset, f, limited, half, G_STEP, U_STEP, Y_STEP)
    else:
        _gate(g, u, y, at, at < left, c, limit, offset, f, limited, half, G_STEP, U_STEP, Y_STEP)


@triton.jit
def _gate_backward(
    grad, g, u, to_g, to_u, at, mask, c, limit, offset,
    f: constexpr, df: constexpr, limited: constexpr, dead: constexpr, half: constexpr,
    GRAD_STEP: constexpr, G_STEP: constexpr, U_STEP: constexpr,
    TO_G_STEP: constexpr, TO_U_STEP: constexpr,
):  # fmt: skip
    of_g, of_u = load(g, at * G_STEP, mask), load(u, at * U_STEP, mask)
    outer = load(grad, at * GRAD_STEP, mask)
    x = _at_most(of_g, limit, limited)
    by_g = passed(df(x, c, half), outer * _factor(of_u, limit, offset, limited), dead)
    by_u = outer * f(x, c, half)
    if limited:
        by_g = tl.where(of_g <= limit, by_g, 0.0)
        by_u = tl.where(tl.abs(of_u) <= limit, by_u, 0.0)
    store(to_g, at * TO_G_STEP, by_g, mask)
    store(to_u, at * TO_U_STEP, by_u, mask)


@triton.jit
def gate_backward(
    grad, g, u, to_g, to_u, count, blocks, grad_row, g_row, u_row, to_g_row, to_u_row,
    c, limit, offset, f: constexpr, df: constexpr, limited: constexpr, dead: constexpr,
    GRAD_STEP: constexpr, G_STEP: constexpr, U_STEP: constexpr,
    TO_G_STEP: constexpr, TO_U_STEP: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """The gradients of both: grad·(clamp(u) + offset)·f'(min(g, limit)) and grad·f(min(g, limit)),
    0 where g or u is beyond the limit
    """
    half: tl.constexpr = g.dtype.element_ty != tl.float32
    row, start, left = _offsets(count, blocks, BLOCK)
    at = tl.arange(0, BLOCK)
    grad += row * grad_row + start * GRAD_STEP
    g += row * g_row + start * G_STEP
    u += row * u_row + start * U_STEP
    to_g += row * to_g_row + start * TO_G_STEP
    to_u += row * to_u_row + start * TO_U_STEP
    if left >= BLOCK:
        _gate_backward(
            grad, g, u, to_g, to_u, at, None, c, limit, offset, f, df, limited, dead, half,
            GRAD_STEP, G_STEP, U_STEP, TO_G_STEP, TO_U_STEP,
        )  # fmt: skip
    else:
        _gate_backward(
            grad, g, u, to_g, to_u, at, at < left, c, limit, offset, f, df, limited, dead, half,
            GRAD_STEP, G_STEP, U_STEP, TO_G_STEP, TO_U_STEP,
        )  # fmt: skip


# ---- the output and the side ---------------------------------------------------------------------


@triton.jit
def _forward_packed(
    x, y, side, at, bytes_at, mask, bytes_mask, c, minimum, f: constexpr, half: constexpr
):
    of_x = load(x, at, mask)
    of_y = f(of_x, c, half)
    if not half:
        # Near the minimum, one output stands for a whole range of gradients, and every rounding on
        # the way to it would widen that range. Computed as the parabola it is there, f is rounded
        # only once.
        root = tl.fma(of_x, minimum[1], minimum[2])
        above = tl.fma(root, root, minimum[4])
        of_y = tl.where(above < minimum[5], minimum[3] + above, of_y)
    store(y, at, of_y, mask)
    bits = (of_x > minimum[0]).to(tl.int32)
    if mask is not None:
        bits = tl.where(mask, bits, 0)
    packed = tl.sum(bits << tl.arange(0, 8)[None, :], axis=1)
    tl.store(side + bytes_at, packed.to(tl.uint8), mask=bytes_mask)


@triton.jit
def forward_packed(x, y, side, count, c, minimum, f: constexpr, BLOCK: constexpr):
    """y = f(x), side = x > turn, eight to a byte; `minimum` begins with the turn"""
    half: tl.constexpr = x.dtype.element_ty != tl.float32
    start = tl.program_id(0).to(tl.int64) * BLOCK
    bytes_at = tl.arange(0, BLOCK // 8)
    at = bytes_at[:, None] * 8 + tl.arange(0, 8)[None, :]
    x, y, side = x + start, y + start, side + start // 8
    if start + BLOCK <= count:
        _forward_packed(x, y, side, at, bytes_at, None, None, c, minimum, f, half)
    else:
        left = count - start
        mask, bytes_mask = at < left, bytes_at * 8 < left
        _forward_packed(x, y, side, at, bytes_at, mask, bytes_mask, c, minimum, f, half)


@triton.jit
def _backward_packed(
    grad, y, side, result, at, bytes_at, mask, bytes_mask, c,
    df_y: constexpr, table: constexpr, dead: constexpr, half: constexpr, sided: constexpr,
):  # fmt: skip
    of_y = load(y, at, mask)
    right = of_y
    if sided:
        packed = tl.load(side + bytes_at, mask=bytes_mask).to(tl.int32)
        right = ((packed[:, None] >> tl.arange(0, 8)[None, :]) & 1) != 0
    slope = df_y(of_y, right, c, table, half)
    store(result, at, passed(slope, load(grad, at, mask), dead), mask)


@triton.jit
def backward_packed(
    grad, y, side, result, count, c,
    df_y: constexpr, table: constexpr, dead: constexpr, sided: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """result = grad·f'(x), with x known by y and its side"""
    half: tl.constexpr = y.dtype.element_ty != tl.float32
    start = tl.program_id(0).to(tl.int64) * BLOCK
    bytes_at = tl.arange(0, BLOCK // 8)
    at = bytes_at[:, None] * 8 + tl.arange(0, 8)[None, :]
    grad, y, side, result = grad + start, y + start, side + start // 8, result + start
    if start + BLOCK <= count:
        _backward_packed(
            grad, y, side, result, at, bytes_at, None, None, c, df_y, table, dead, half, sided
        )
    else:
        left = count - start
        mask, bytes_mask = at < left, bytes_at * 8 < left
        _backward_packed(
            grad, y, side, result, at, bytes_at, mask, bytes_mask, c, df_y, table, dead, half, sided
        )


# ---- trained parameters --------------------------------------------------------------------------
# In memory order x is (outer, channels, inner). A program takes tiles of OUTER × CHANNELS × INNER,
# no larger than the tensor needs. `parameters` has one row per parameter and one column per
# channel.


@triton.jit
def _parameters(parameters, channel, channels, numbers: constexpr, count: constexpr):
    """The numbers for a block of channels."""
    mask = channel < channels
    tl.static_assert(count <= 3, "there are no more sums")
    if count == 1:
        return numbers((tl.load(parameters + channel, mask=mask),))
    elif count == 2:
        return numbers(
            (
                tl.load(parameters + channel, mask=mask),
                tl.load(parameters + channels + channel, mask=mask),
            )
        )
    else:
        return numbers(
            (
                tl.load(parameters + channel, mask=mask),
                tl.load(parameters + channels + channel, mask=mask),
                tl.load(parameters + 2 * channels + channel, mask=mask),
            )
        )


@triton.jit
def _tile(number, outer, inner, OUTER: constexpr, INNER: constexpr):
    """The indices of a tile along the outer and the inner dimension."""
    tiles = tl.cdiv(inner, INNER)
    row = (number // tiles).to(tl.int64) * OUTER + tl.arange(0, OUTER)[:, None, None]
    place = (number % tiles).to(tl.int64) * INNER + tl.arange(0, INNER)[None, None, :]
    return row, place


@triton.jit
def trained(
    x, parameters, y, outer, channels, inner, tiles,
    numbers: constexpr, f: constexpr, count: constexpr,
    OUTER: constexpr, CHANNELS: constexpr, INNER: constexpr,
):  # fmt: skip
    """y = f(x)"""
    half: tl.constexpr = x.dtype.element_ty != tl.float32
    program = tl.program_id(0)
    channel = (program // tiles) * CHANNELS + tl.arange(0, CHANNELS)[None, :, None]
    c = _parameters(parameters, channel, channels, numbers, count)
    row, place = _tile(program % tiles, outer, inner, OUTER, INNER)
    at = (row * channels + channel) * inner + place
    mask = (row < outer) & (channel < channels) & (place < inner)
    store(y, at, f(load(x, at, mask), c, half), mask)


@triton.jit
def trained_backward(
    grad, x, parameters, result, sums, outer, channels, inner, tiles, parts, steps,
    numbers: constexpr, df: constexpr, dp: constexpr, count: constexpr,
    OUTER: constexpr, CHANNELS: constexpr, INNER: constexpr,
):  # fmt: skip
    """result = grad·f'(x), and for this program's tiles, the sums of grad times the derivatives
    with respect to the parameters, in sums[parameter, part, channel]
    """
    half: tl.constexpr = x.dtype.element_ty != tl.float32
    program = tl.program_id(0)
    channel = (program // parts) * CHANNELS + tl.arange(0, CHANNELS)[None, :, None]
    part = program % parts
    c = _parameters(parameters, channel, channels, numbers, count)
    first = tl.zeros((OUTER, CHANNELS, INNER), tl.float32)
    second, third = first, first
    for step in range(steps):
        number = part * steps + step
        row, place = _tile(number, outer, inner, OUTER, INNER)
        at = (row * channels + channel) * inner + place
        mask = (row < outer) & (channel < channels) & (place < inner)
        of_x, g = load(x, at, mask), load(grad, at, mask)
        store(result, at, df(of_x, c, half) * g, mask)
        by = dp(of_x, c, half)
        first += tl.where(mask, by[0] * g, 0.0)
        if count >= 2:
            second += tl.where(mask, by[1] * g, 0.0)
        if count == 3:
            third += tl.where(mask, by[2] * g, 0.0)
    _store_sum(sums, first, part, channel, channels)
    if count >= 2:
        _store_sum(sums + parts * channels, second, part, channel, channels)
    if count == 3:
        _store_sum(sums + 2 * parts * channels, third, part, channel, channels)


@triton.jit
def _store_sum(sums, terms, part, channel, channels):
    total = tl.sum(tl.sum(terms, 2, keep_dims=True), 0, keep_dims=True)
    tl.store(sums + part.to(tl.int64) * channels + channel, total, mask=channel < channels)


# ---- what follows a normalisation ----------------------------------------------------------------
# In tiles, as above. `scale` and `shift` have a row of numbers, one per channel, for every `rows`
# rows of x.


@triton.jit
def _scaled(x, scale, shift, row, channel, place, outer, channels, inner, rows):
    """scale·x + shift, rounded to x's type as the normalisation had rounded it; where; the mask"""
    at = (row * channels + channel) * inner + place
    mask = (row < outer) & (channel < channels) & (place < inner)
    numbers = (row // rows) * channels + channel
    present = (row < outer) & (channel < channels)
    of_scale = tl.load(scale + numbers, mask=present)
    of_shift = tl.load(shift + numbers, mask=present)
    z = tl.fma(load(x, at, mask), of_scale, of_shift)
    return z.to(x.dtype.element_ty).to(tl.float32), at, mask


@triton.jit
def affine(
    x, scale, shift, y, outer, channels, inner, tiles, rows, c,
    f: constexpr, OUTER: constexpr, CHANNELS: constexpr, INNER: constexpr,
):  # fmt: skip
    """y = f(scale·x + shift); without f, y = scale·x + shift"""
    half: tl.constexpr = x.dtype.element_ty != tl.float32
    program = tl.program_id(0)
    channel = (program // tiles) * CHANNELS + tl.arange(0, CHANNELS)[None, :, None]
    row, place = _tile(program % tiles, outer, inner, OUTER, INNER)
    z, at, mask = _scaled(x, scale, shift, row, channel, place, outer, channels, inner, rows)
    if f is not None:
        z = f(z, c, half)
    store(y, at, z, mask)


@triton.jit
def affine_backward(
    grad, x, scale, shift, result, outer, channels, inner, tiles, rows, c,
    df: constexpr, dead: constexpr, OUTER: constexpr, CHANNELS: constexpr, INNER: constexpr,
):  # fmt: skip
    """result = grad·f'(scale·x + shift)"""
    half: tl.constexpr = x.dtype.element_ty != tl.float32
    program = tl.program_id(0)
    channel = (program // tiles) * CHANNELS + tl.arange(0, CHANNELS)[None, :, None]
    row, place = _tile(program % tiles, outer, inner, OUTER, INNER)
    z, at, mask = _scaled(x, scale, shift, row, channel, place, outer, channels, inner, rows)
    store(result, at, passed(df(z, c, half), load(grad, at, mask), dead), mask)


@triton.jit
def layer_norm_again(
    x, mean, rstd, weight, bias, y, rows, columns, tiles, ROWS: constexpr, COLUMNS: constexpr
):
    """y = ((x − mean)·rstd)·weight + bias"""
    program = tl.program_id(0)
    row = (program // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = (program % tiles) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    in_rows, in_columns = row < rows, column < columns
    at, mask = row * columns + column, in_rows & in_columns
    normal = load(x, at, mask) - tl.load(mean + row, mask=in_rows)
    normal *= tl.load(rstd + row, mask=in_rows)
    of_weight = tl.load(weight + column, mask=in_columns)
    store(y, at, tl.fma(normal, of_weight, tl.load(bias + column, mask=in_columns)), mask)
