"""The cost of a function: instructions in its kernels, bytes moved, and which is the limit.

The roofline is that of one core of this machine: how fast memory copies, and how fast the kernel
runs if everything it touches is in the nearest cache.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mishkit.activation import Activation
from mishkit.backends import cpu
from mishkit.bodies import BACKWARD, BACKWARD_PACKED, BODIES, FORWARD, FORWARD_PACKED

from .. import LabError
from ..code.machine import DTYPES, ISAS, LoopCounts, library
from ..common.environment import processor
from ..common.named import Named
from ..common.timing import Call, round_robin, torch_threads

_TIMED = (FORWARD, FORWARD_PACKED, BACKWARD, BACKWARD_PACKED)
_TIMED_DTYPES = (torch.float32, torch.bfloat16)
IN_CACHE = 2048
"""Elements: three streams of float32 take 24 KiB of the 32 KiB of a core's first-level cache."""
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
LEAST_COPY = 64 << 20
MOST_COPY = 512 << 20
"""The size of the copied tensor in bytes."""
SECONDS = 1.0


@dataclass(frozen=True)
class Roof:
    """One kernel body in one dtype on this machine."""

    body: str
    dtype: str
    bytes: float
    """Bytes read and written per element."""
    compute_ns: float
    """Per element, in cache, without the cost of the call."""
    memory_ns: float
    """Per element, at the speed at which memory copies."""

    @property
    def bound(self) -> str:
        """ "memory" if moving the bytes takes longer than computing, otherwise "compute"."""
        return "memory" if self.memory_ns > self.compute_ns else "compute"

    @property
    def ratio(self) -> float:
        """Time to compute divided by time to move the bytes; below 1, memory is the limit."""
        return self.compute_ns / self.memory_ns


@dataclass(frozen=True)
class Cost:
    """Instructions, bytes and the roofline."""

    loops: tuple[LoopCounts, ...]
    """Empty if they were not counted."""
    why_no_loops: str | None
    roofs: tuple[Roof, ...]
    copy_bytes_per_ns: float
    """Bytes read and written per nanosecond (GB/s)."""
    copied_bytes: int
    """The size of the tensor that was copied."""
    kernels: str
    """The instruction set that was timed; "none" for plain torch."""
    processor: str


def measure(named: Named) -> Cost:
    """The cost of a function with its parameters; takes about two seconds."""
    loops: tuple[LoopCounts, ...] = ()
    reason = None
    try:
        loops = tuple(count(named))
    except LabError as error:
        reason = str(error)
    with torch_threads(1):
        rate, size = copy_rate()
        roofs = tuple(_roofs(named, rate))
    return Cost(
        loops=loops,
        why_no_loops=reason,
        roofs=roofs,
        copy_bytes_per_ns=rate,
        copied_bytes=size,
        kernels=cpu.isa(),
        processor=processor(),
    )


def count(named: Named, dtypes: tuple[str, ...] = DTYPES) -> list[LoopCounts]:
    """The main loops of all kernels of a function, in every instruction set of the build."""
    compiled = library()
    a = named.activation
    built = {isa for isa, *_ in compiled.kernels}
    return [
        compiled.count(isa, a.name, dtype, body, iterated=_is_iterated(named, dtype, body))
        for isa in ISAS
        if isa in built
        for dtype in dtypes
        for body in BODIES
    ]


def _is_iterated(named: Named, dtype: str, body: str) -> bool:
    return body == BACKWARD_PACKED and named.activation.iterates(*named.values)


def bytes_moved(a: Activation, body: str, dtype: torch.dtype) -> float:
    """Bytes that a body reads and writes, per element."""
    tensors, packed = BODIES[body].traffic, BODIES[body].has_side
    # A monotone function has no side.
    return tensors * dtype.itemsize + (0.125 if packed and a.turn is not None else 0.0)


def copy_rate() -> tuple[float, int]:
    """Bytes per nanosecond read and written by a memory copy, and the size of the tensor copied."""
    size = min(max(LEAST_COPY, 2 * _largest_cache()), MOST_COPY)
    source = torch.zeros(size // 4)
    target = torch.zeros(size // 4)
    timing = round_robin({0: Call(lambda: target.copy_(source))}, seconds=0.3 * SECONDS)[0]
    return 2 * size / timing.min, size


def _largest_cache() -> int:
    sizes = [0]
    for file in _CACHES.glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KM])", file.read_text().strip())
        if match:
            sizes.append(int(match[1]) << {"K": 10, "M": 20}[match[2]])
    return max(sizes)


def _roofs(named: Named, rate: float) -> list[Roof]:
    calls: dict[tuple[str, torch.dtype, int], Call] = {}
    for dtype in _TIMED_DTYPES:
        # A quarter of the elements is timed as well, to subtract the cost of the call.
        for elements in (IN_CACHE, IN_CACHE // 4):
            for body, run in _bodies(named, dtype, elements).items():
                calls[body, dtype, elements] = Call(run)
    timings = round_robin(calls, seconds=SECONDS)
    roofs = []
    for dtype in _TIMED_DTYPES:
        for body in (b for b in _TIMED if (b, dtype, IN_CACHE) in calls):
            whole, quarter = (timings[body, dtype, n].min for n in (IN_CACHE, IN_CACHE // 4))
            moved = bytes_moved(named.activation, body, dtype)
            compute = max(whole - quarter, 0.0) / (IN_CACHE - IN_CACHE // 4)
            name = str(dtype).removeprefix("torch.")
            roofs.append(Roof(body, name, moved, compute, moved / rate))
    return roofs


def _bodies(named: Named, dtype: torch.dtype, elements: int) -> dict[str, Callable[[], Any]]:
    """The operators as calls, each on its own tensors."""
    a, values = named.activation, named.values
    generator = torch.Generator().manual_seed(0)
    x = (2 * torch.randn(elements, generator=generator)).to(dtype)
    g = torch.randn(elements, generator=generator).to(dtype)

    def operator(ending: str) -> Callable[..., Any]:
        return getattr(torch.ops.mishkit, a.name + ending).default

    forward, backward = operator(""), operator("_backward")
    bodies: dict[str, Callable[[], Any]] = {
        "forward": lambda: forward(x, *values),
        "backward": lambda: backward(g, x, *values),
    }
    try:
        a.turn_at(*values)
    except ValueError:  # the output does not determine the gradient
        return bodies
    packed, from_output = operator("_packed"), operator("_backward_packed")
    y, side = packed(x, *values)
    bodies["forward_packed"] = lambda: packed(x, *values)
    bodies["backward_packed"] = lambda: from_output(g, y, side, *values)
    return bodies
