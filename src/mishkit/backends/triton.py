"""The GPU kernels, in Triton; used if torch is built for GPUs and Triton is installed.

The functions here are the operators, as in `backends.torch`, for dense tensors of any layout. What
Triton does not support, float64, is passed on to that module. Kernels run on the current stream of
the tensors' device, never wait for the host and need no memory beyond their results. The first call
with a dtype compiles for some tenths of a second, so call once before capturing a CUDA graph.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..activation import Activation
from ..bodies import BODIES
from ..functions._branch_fit import leading
from . import torch as plain

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that the kernels support."""
WARPS = 4
LANES = 64 if torch.version.hip else 32
"""Threads per warp."""
STEPS = 8
"""Tiles per program, where programs sum over them."""
SMALL = 1 << 18
"""With fewer elements than this, a program gets half a block: having enough programs for all
processors matters more than having two loads in flight.
"""


@functools.cache
def available() -> bool:
    """Whether torch is built for GPUs and Triton is installed; neither is imported to find out."""
    has_gpu = torch.version.cuda is not None or torch.version.hip is not None
    return has_gpu and importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Launch:
    """A kernel to launch for a dtype and parameters; only the tensors and their size are open."""

    kernel: Any
    tensors: tuple[str, ...]
    """The kernel's pointers, in order: "side" points to bytes, all others to elements."""
    numbers: tuple[float, ...]
    """The kernel's argument `c`."""
    minimum: tuple[float, ...] | None
    """The kernel's argument `minimum`, if it has one."""
    constants: dict[str, Any]
    """The kernel's constants by name, except BLOCK."""
    traffic: int
    """Values read or written per element, not counting the side."""

    @property
    def has_side(self) -> bool:
        """Whether it reads or writes side bits."""
        return "side" in self.tensors and self.constants.get("sided", True)

    def block(self, dtype: torch.dtype, count: int, lanes: int = 0) -> int:
        """Elements per program: two 16-byte loads per thread. One load if warps are wide, if there
        are few elements, or if there are five tensors, which would need too many registers.
        """
        lanes = lanes or LANES
        loads = 2 if lanes == 32 and count >= SMALL and self.traffic <= 3 else 1
        return loads * WARPS * lanes * 16 // dtype.itemsize

    def __call__(
        self, dtype: torch.dtype, count: int, *tensors: Tensor, more: tuple[Any, ...] = ()
    ) -> None:
        block = self.block(dtype, count)
        numbers = (self.numbers, *more) if self.minimum is None else (self.numbers, self.minimum)
        with on_device(tensors[0]):
            self.kernel[(_blocks(count, block),)](
                *tensors, count, *numbers, **self.constants, BLOCK=block, num_warps=WARPS
            )


@functools.lru_cache(maxsize=1024)
def launch(a: Activation, body: str, dtype: torch.dtype, *parameters: float) -> Launch:
    """The kernel for a body, which is one of `mishkit.bodies.BODIES`."""
    if body not in BODIES:
        raise ValueError(f"there is no kernel {body!r}")
    twin, tensors, formulas = a.twin.at(*parameters), BODIES[body].tensors, BODIES[body].formulas
    constants = {formula: getattr(twin, formula) for formula in formulas}
    if "backward" in body:
        constants["dead"] = a.is_dead
    if body == "backward_packed":
        numbers = twin.output_numbers(dtype, *parameters)
        constants |= {"table": twin.table(dtype, *parameters), "sided": a.turn is not None}
    else:
        numbers = twin.numbers(*parameters)
    unread = {"side"} | ({"grad"} if body == "double_backward" and a.made_of == "lines" else set())
    return Launch(
        kernel=getattr(_kernels(), body),
        tensors=tensors,
        numbers=_for_launcher(numbers),
        minimum=_minimum(a, dtype, parameters) if body == "forward_packed" else None,
        constants=constants,
        traffic=len(set(tensors) - unread),
    )


@functools.lru_cache(maxsize=1024)
def _blend_launch(
    a: Activation,
    of_a: tuple[float, ...],
    b: Activation,
    of_b: tuple[float, ...],
    is_backward: bool,
) -> tuple[Launch, tuple[float, ...]]:
    """The kernel for two functions, and the numbers of the second."""
    first, second = a.twin.at(*of_a), b.twin.at(*of_b)
    f, g = (twin.df if is_backward else twin.f for twin in (first, second))
    names = ("df", "dg") if is_backward else ("f", "g")
    constants = dict(zip(names, (f, g), strict=True))
    if is_backward:
        constants["dead"] = a.is_dead and b.is_dead
    launch = Launch(
        kernel=_kernels().blend_backward if is_backward else _kernels().blend,
        tensors=("grad", "x", "result") if is_backward else ("x", "y"),
        numbers=_for_launcher(first.numbers(*of_a)),
        minimum=None,
        constants=constants,
        traffic=3 if is_backward else 2,
    )
    return launch, _for_launcher(second.numbers(*of_b))


def _minimum(
    a: Activation, dtype: torch.dtype, parameters: tuple[float, ...]
) -> tuple[float, ...] | None:
    """The `minimum` that `forward_packed` takes: the turn, and in float32 also the parabola near
    it, whose root is bend·x + shift: bend, shift, y in two parts, and how far above the first part
    the parabola is used.
    """
    turn = a.turn_at(*parameters)
    if turn is None or dtype != torch.float32:
        return None if turn is None else (turn,)
    minimum = a.minimum_at(*parameters)
    if minimum is None:
        return turn, 0.0, 0.0, 0.0, 0.0, -math.inf
    bend, high = leading(minimum.bend, 24), leading(minimum.y, 24)
    low = minimum.y - high
    return turn, bend, -minimum.turn * bend, high, low, minimum.reach + low


def _for_launcher(numbers: Sequence[float]) -> tuple[float, ...]:
    """Numbers in the form that a launcher takes: a single 0 if the formula reads none, because
    launchers can't be relied on to accept empty tuples.
    """
    return tuple(map(float, numbers)) or (0.0,)


def _kernels() -> Any:
    from . import _triton_kernels

    return _triton_kernels


# ---- the operators -------------------------------------------------------------------------------


def forward(a: Activation, x: Tensor, *parameters: float) -> Tensor:
    """f(x)."""
    if x.dtype not in DTYPES:
        return plain.forward(a, x, *parameters)
    x = _dense(x)
    y = torch.empty_like(x)
    _run(launch(a, "forward", x.dtype, *parameters), x, y)
    return y


def forward_out(a: Activation, x: Tensor, out: Tensor, *parameters: float) -> None:
    """f(x), written into `out`."""
    if not _can_write(x, out):
        plain.forward_out(a, x, out, *parameters)
        return
    _run(launch(a, "forward", x.dtype, *parameters), x, out)
    torch.autograd.graph.increment_version(out)


def backward(a: Activation, grad: Tensor, x: Tensor, *parameters: float) -> Tensor:
    """grad·f'(x)."""
    if x.dtype not in DTYPES:
        return plain.backward(a, grad, x, *parameters)
    _check(a.name, x, grad)
    x = _dense(x)
    result = torch.empty_like(x)
    _run(launch(a, "backward", x.dtype, *parameters), _like(grad, x), x, result)
    return result


def double_backward(
    a: Activation, grad_grad: Tensor, grad: Tensor, x: Tensor, *parameters: float
) -> tuple[Tensor, Tensor]:
    """The gradients of `backward` for grad and x: grad_grad·f'(x), grad_grad·grad·f''(x)."""
    if x.dtype not in DTYPES:
        return plain.double_backward(a, grad_grad, grad, x, *parameters)
    _check(a.name, x, grad_grad, grad)
    x = _dense(x)
    to_grad, to_x = torch.empty_like(x), torch.empty_like(x)
    body = launch(a, "double_backward", x.dtype, *parameters)
    _run(body, _like(grad_grad, x), _like(grad, x), x, to_grad, to_x)
    return to_grad, to_x


def forward_packed(a: Activation, x: Tensor, *parameters: float) -> tuple[Tensor, Tensor]:
    """f(x) and the packed side (empty for a monotone function)."""
    if x.dtype not in DTYPES:
        return plain.forward_packed(a, x, *parameters)
    x = _dense(x)
    y = torch.empty_like(x)
    return y, _pack_into(a, x, y, parameters)


def forward_packed_out(a: Activation, x: Tensor, out: Tensor, *parameters: float) -> Tensor:
    """f(x), written into `out` (which may be x), and the packed side."""
    if not _can_write(x, out):
        return plain.forward_packed_out(a, x, out, *parameters)
    side = _pack_into(a, x, out, parameters)
    torch.autograd.graph.increment_version(out)
    return side


def backward_packed(
    a: Activation, grad: Tensor, y: Tensor, side: Tensor, *parameters: float
) -> Tensor:
    """grad·f'(x), with x known by y and its packed side."""
    if y.dtype not in DTYPES:
        return plain.backward_packed(a, grad, y, side, *parameters)
    _check(a.name, y, grad)
    size = 0 if a.turn is None else (y.numel() + 7) // 8
    if side.dtype != torch.uint8 or side.shape != (size,):
        raise RuntimeError(
            f"mishkit.{a.name}: the side must be a row of one bit an element, packed in uint8"
        )
    # A side belongs to a dense output; for other layouts its order is not defined.
    y = _dense(y)
    result = torch.empty_like(y)
    # A monotone function's side has no bytes, and no kernel reads it.
    side = side.contiguous() if a.turn is not None else y
    _run(launch(a, "backward_packed", y.dtype, *parameters), _like(grad, y), y, side, result)
    return result


def blend(
    a: Activation, of_a: tuple[float, ...], b: Activation, of_b: tuple[float, ...],
    x: Tensor, t: float,
) -> Tensor:  # fmt: skip
    """(1 − t)·a(x) + t·b(x), for 0 < t < 1 and a dtype of `DTYPES`."""
    x = _dense(x)
    y = torch.empty_like(x)
    body, of_second = _blend_launch(a, of_a, b, of_b, False)
    _run(body, x, y, more=(of_second, t))
    return y


def blend_backward(
    a: Activation, of_a: tuple[float, ...], b: Activation, of_b: tuple[float, ...],
    grad: Tensor, x: Tensor, t: float,
) -> Tensor:  # fmt: skip
    """grad·((1 − t)·a'(x) + t·b'(x)), for the same t and dtypes."""
    _check("blend", x, grad)
    x = _dense(x)
    result = torch.empty_like(x)
    body, of_second = _blend_launch(a, of_a, b, of_b, True)
    _run(body, _like(grad, x), x, result, more=(of_second, t))
    return result


def gate(
    a: Activation, g: Tensor, u: Tensor, limit: float, offset: float, *parameters: float
) -> Tensor:
    """f(min(g, limit))·(clamp(u, −limit, limit) + offset), for a dtype of `DTYPES`."""
    out = torch.empty_like(g)
    _run_gate(a, (g, u), (out,), limit, offset, parameters)
    return out


def gate_out(
    a: Activation,
    g: Tensor,
    u: Tensor,
    out: Tensor,
    limit: float,
    offset: float,
    *parameters: float,
) -> None:
    """`gate`, written into `out`."""
    _check("gate", g, u, out)
    storages = {t.untyped_storage().data_ptr() for t in (g, u)}
    if out.untyped_storage().data_ptr() in storages:
        out.copy_(gate(a, g, u, limit, offset, *parameters))
        return
    _run_gate(a, (g, u), (out,), limit, offset, parameters)
    torch.autograd.graph.increment_version(out)


def gate_backward(
    a: Activation,
    grad: Tensor,
    g: Tensor,
    u: Tensor,
    limit: float,
    offset: float,
    *parameters: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of `gate` for g and u."""
    results = torch.empty_like(g), torch.empty_like(u)
    _run_gate(a, (grad, g, u), results, limit, offset, parameters)
    return results


def gate_backward_out(
    a: Activation, grad: Tensor, g: Tensor, u: Tensor, grad_g: Tensor, grad_u: Tensor,
    limit: float, offset: float, *parameters: float,
) -> None:  # fmt: skip
    """`gate_backward`, written into `grad_g` and `grad_u`."""
    _run_gate(a, (grad, g, u), (grad_g, grad_u), limit, offset, parameters)


def _run_gate(
    a: Activation,
    inputs: tuple[Tensor, ...],
    results: tuple[Tensor, ...],
    limit: float,
    offset: float,
    parameters: tuple[float, ...],
) -> None:
    _check("gate", *inputs, *results)
    count = inputs[0].numel()
    if not count:
        return
    is_backward = len(results) == 2
    twin = a.twin.at(*parameters)
    constants = {"f": twin.f, "limited": limit != math.inf}
    if is_backward:
        constants |= {"df": twin.df, "dead": a.is_dead}
    rows, columns = _in_rows(results[0], (*inputs, *results))
    tensors = [row.tensor for row in rows]
    names = ("GRAD", "G", "U", "TO_G", "TO_U") if is_backward else ("G", "U", "Y")
    steps = {f"{name}_STEP": row.step for name, row in zip(names, rows, strict=True)}
    longest = WARPS * LANES * 16 // inputs[0].dtype.itemsize
    block = min(longest, 1 << (columns - 1).bit_length())
    blocks = _blocks(columns, block)
    kernel = _kernels().gate_backward if is_backward else _kernels().gate
    with on_device(inputs[0]):
        kernel[(count // columns * blocks,)](
            *(*tensors, columns, blocks, *(row.row for row in rows)),
            *(_for_launcher(twin.numbers(*parameters)), limit, offset),
            **constants,
            **steps,
            BLOCK=block,
            num_warps=WARPS,
        )
    for result, tensor in zip(results, tensors[len(inputs) :], strict=True):
        if tensor is not result:
            result.copy_(tensor)


@dataclass(frozen=True)
class _Rows:
    """A tensor in rows, in some memory order: elements `step` apart, rows `row` apart."""

    tensor: Tensor
    row: int
    step: int


def _in_rows(like: Tensor, tensors: Sequence[Tensor]) -> tuple[list[_Rows], int]:
    """The tensors as rows of one length, in the order of the first result; and the length.

    Those that do not lie in such rows are copied.
    """
    dense = torch.empty_like(like, device="meta")
    sizes, strides = like.shape, dense.stride()
    order = [dim for dim in range(like.dim()) if sizes[dim] != 1]
    order.sort(key=lambda dim: strides[dim])
    levels = [_levels([(sizes[dim], x.stride(dim)) for dim in order]) for x in tensors]
    lengths = {level[0][0] for level in levels if len(level) == 2}
    columns = lengths.pop() if lengths else like.numel()
    rows = []
    for x, level in zip(tensors, levels, strict=True):
        if len(level) > 2 or (len(level) == 2 and level[0][0] != columns):
            x = torch.empty_strided(sizes, strides, dtype=x.dtype, device=x.device).copy_(x)
            level = [(x.numel(), 1)]
        step = level[0][1] if level else 1
        rows.append(_Rows(x, level[1][1] if len(level) == 2 else columns * step, step))
    return rows, columns


def _levels(dims: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sizes and strides, the innermost first, with what is evenly spaced put together."""
    levels: list[tuple[int, int]] = []
    for size, stride in dims:
        if levels and stride == levels[-1][0] * levels[-1][1]:
            levels[-1] = levels[-1][0] * size, levels[-1][1]
        else:
            levels.append((size, stride))
    return levels


def affine(
    a: Activation | None, x: Tensor, scale: Tensor, shift: Tensor, *parameters: float
) -> Tensor:
    """f(scale·x + shift) for a dtype of `DTYPES`; without a function, scale·x + shift."""
    x = _dense(x)
    y = torch.empty_like(x)
    if x.numel():
        twin = a.twin.at(*parameters) if a else None
        numbers = _for_launcher(twin.numbers(*parameters) if twin else ())
        tiling, rows = Tiling.of_affine(x, scale)
        with on_device(x):
            _kernels().affine[(tiling.channel_blocks * tiling.tiles,)](
                *(x, scale, shift, y, *tiling.shape, tiling.tiles, rows, numbers),
                *(twin.f if twin else None, *tiling.tile),
                num_warps=WARPS,
            )
    return y


def affine_backward(
    a: Activation, grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, *parameters: float
) -> Tensor:
    """grad·f'(scale·x + shift) for the same dtypes."""
    _check("affine_backward", x, grad)
    x = _dense(x)
    result = torch.empty_like(x)
    if x.numel():
        twin = a.twin.at(*parameters)
        tiling, rows = Tiling.of_affine(x, scale)
        with on_device(x):
            _kernels().affine_backward[(tiling.channel_blocks * tiling.tiles,)](
                *(_like(grad, x), x, scale, shift, result, *tiling.shape, tiling.tiles, rows),
                *(_for_launcher(twin.numbers(*parameters)), twin.df, a.is_dead, *tiling.tile),
                num_warps=WARPS,
            )
    return result


def layer_norm_again(x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """((x − mean)·rstd)·weight + bias for a contiguous x of the same dtypes."""
    y = torch.empty_like(x)
    if x.numel():
        rows, columns = x.numel() // weight.numel(), weight.numel()
        tile = tile_of((rows, columns, 1), x.dtype)[:2]
        tiles = _blocks(columns, tile[1])
        with on_device(x):
            _kernels().layer_norm_again[(_blocks(rows, tile[0]) * tiles,)](
                *(x, mean, rstd, weight, bias, y, rows, columns, tiles, *tile), num_warps=WARPS
            )
    return y


def trained(a: Activation, x: Tensor, parameters: Tensor) -> Tensor:
    """f(x) with parameters in a tensor: a row per parameter; one column, or one per channel."""
    if x.dtype not in DTYPES:
        return plain.trained(a, x, parameters)
    x, parameters = _dense(x), parameters.contiguous()
    y = torch.empty_like(x)
    if x.numel():
        twin, tiling = a.twin.of_trained, Tiling.of(x, parameters.shape[1])
        with on_device(x):
            _kernels().trained[(tiling.channel_blocks * tiling.tiles,)](
                *(x, parameters, y, *tiling.shape, tiling.tiles),
                *(twin.trained_numbers, twin.f, len(a.parameters), *tiling.tile),
                num_warps=WARPS,
            )
    return y


def trained_backward(
    a: Activation, grad: Tensor, x: Tensor, parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of `trained` for x and the parameters.

    Each program sums up to STEPS tiles, and torch adds the programs' sums. The order of summation
    depends only on the sizes.
    """
    if x.dtype not in DTYPES:
        return plain.trained_backward(a, grad, x, parameters)
    _check(a.name, x, grad)
    x, parameters = _dense(x), parameters.contiguous()
    result = torch.empty_like(x)
    if not x.numel():
        return result, torch.zeros_like(parameters)
    twin, tiling = a.twin.of_trained, Tiling.of(x, parameters.shape[1])
    steps = min(STEPS, tiling.tiles)
    parts = _blocks(tiling.tiles, steps)
    sums = parameters.new_empty(parameters.shape[0], parts, parameters.shape[1])
    with on_device(x):
        _kernels().trained_backward[(tiling.channel_blocks * parts,)](
            *(_like(grad, x), x, parameters, result, sums, *tiling.shape, tiling.tiles),
            *(parts, steps, twin.trained_numbers, twin.df, twin.dp, len(a.parameters)),
            *tiling.tile,
            num_warps=WARPS,
        )
    return result, sums.sum(1)


@dataclass(frozen=True)
class Tiling:
    """A dense tensor as (outer, channels, inner) in memory order, and its tiles."""

    shape: tuple[int, int, int]
    tile: tuple[int, int, int]
    """The tile's sizes, which are powers of two."""

    @classmethod
    def of(cls, x: Tensor, channels: int) -> Tiling:
        """The tiling of a tensor with this many channels in dimension 1; with 1, of any tensor."""
        inner = x.numel() if channels == 1 else x.stride(1)
        shape = (x.numel() // (channels * inner), channels, inner)
        return cls(shape, tile_of(shape, x.dtype))

    @classmethod
    def of_affine(cls, x: Tensor, scale: Tensor) -> tuple[Tiling, int]:
        """The tiling of a tensor with a scale per channel, or per sample and channel; and how many
        of its rows share their numbers.
        """
        samples, channels = x.shape[:2]
        if scale.dim() == 1:
            tiling = cls.of(x, channels)
            return tiling, tiling.shape[0]
        if samples > 1 and x.stride(0) * samples != x.numel():
            raise RuntimeError(
                "mishkit.affine: the samples of the input must follow each other in memory"
            )
        inner = x.stride(1) if channels > 1 else x.numel() // samples
        shape = (x.numel() // (channels * inner), channels, inner)
        return cls(shape, tile_of(shape, x.dtype)), shape[0] // samples

    @property
    def tiles(self) -> int:
        """The number of tiles per block of channels."""
        return _blocks(self.shape[0], self.tile[0]) * _blocks(self.shape[2], self.tile[2])

    @property
    def channel_blocks(self) -> int:
        """The number of blocks of channels."""
        return _blocks(self.shape[1], self.tile[1])


def tile_of(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[int, int, int]:
    """The tile for a tensor: neighbours in memory first, as many as one or two 16-byte loads per
    thread can fetch.
    """
    free = WARPS * 64 * 16 // dtype.itemsize
    sizes = []
    for size in reversed(shape):
        sizes.append(min(free, 1 << (size - 1).bit_length()))
        free //= sizes[-1]
    return sizes[2], sizes[1], sizes[0]


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _pack_into(a: Activation, x: Tensor, y: Tensor, parameters: tuple[float, ...]) -> Tensor:
    if a.turn is None:
        _run(launch(a, "forward", x.dtype, *parameters), x, y)
        return x.new_empty(0, dtype=torch.uint8)
    side = x.new_empty((x.numel() + 7) // 8, dtype=torch.uint8)
    _run(launch(a, "forward_packed", x.dtype, *parameters), x, y, side)
    return side


def _run(body: Launch, *tensors: Tensor, more: tuple[Any, ...] = ()) -> None:
    first = tensors[0]  # the last may be a side
    if first.numel():
        body(first.dtype, first.numel(), *tensors, more=more)


# ---- tensors -------------------------------------------------------------------------------------


def _dense(x: Tensor) -> Tensor:
    """x, or a copy of x with the strides that results have."""
    return x if plain.is_dense(x) else torch.empty_like(x).copy_(x)


def _check(name: str, x: Tensor, *tensors: Tensor) -> None:
    """Reject tensors whose dtype or shape differs from x's, as the CPU kernels do."""
    if any(t.dtype != x.dtype or t.shape != x.shape for t in tensors):
        raise RuntimeError(f"mishkit.{name}: the tensors differ in dtype or shape")


def _like(grad: Tensor, x: Tensor) -> Tensor:
    """grad in the layout of x."""
    return grad if grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)


def _can_write(x: Tensor, out: Tensor) -> bool:
    """Whether a kernel may write f(x) straight into `out`."""
    alike = (
        x.dtype in DTYPES
        and x.dtype == out.dtype
        and x.device == out.device
        and x.shape == out.shape
        and x.stride() == out.stride()
        and plain.is_dense(x)
    )
    if not alike:
        return False
    # With a different offset in the same storage, elements might be overwritten before they are
    # read.
    same_storage = x.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
    return x.data_ptr() == out.data_ptr() or not same_storage


def on_device(x: Tensor) -> Any:
    """Triton launches on the current device, which may not be the tensors' device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
