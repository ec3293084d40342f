"""Whether a kernel would wait for memory or for its arithmetic, going only by published peaks.

The ratio of a kernel on a GPU is the time of its busiest unit divided by the time of its memory
traffic, each at its peak:

    max over units of (operations per element / rate)  ÷  (bytes per element / bandwidth)

Below 1 the arithmetic hides behind memory, as far as the two overlap at all; above 1 the kernel
can't reach memory speed. This assumes that units work in parallel, that there are enough threads to
hide every latency, that all data come from memory once and go to memory once, and that clocks are
at their peak. Launches, the last wave of programs, the caches and the load/store units are left
out; with 16 bytes per access these move several times what memory does. So the ratio tells which
kernels can't be fast, and which of two is nearer to memory speed. It does not give a time.

The float32 FMA and the ALU (comparisons, selects, logic, packing to 16 bits) are separate units.
Each scheduler issues one instruction per clock, and a unit with 16 lanes takes two clocks for a
warp, so both run at once. Counting them together would double the time of a kernel that splits its
work evenly between them. That the scheduler can't issue more is a separate limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .gpu import ALU, DOUBLE, FMA, HALF, HEAVY, ISSUE, SCALAR, SPECIAL, VECTOR, Code


@dataclass(frozen=True)
class GPU:
    """The published peaks of a GPU."""

    name: str
    target: str
    """The target that its code is compiled for."""
    processors: int
    """Streaming multiprocessors, or compute units."""
    float32: float
    """TFLOPS of the vector units."""
    float32_a_clock: int
    """Operations per clock and processor behind that figure; a fused multiply-add counts as two."""
    bandwidth: float
    """Memory bandwidth in GB/s."""
    rates: Mapping[str, float]
    """Thread operations per clock and processor, by unit; other units don't limit it."""

    @property
    def clock(self) -> float:
        """The clock in GHz at which its float32 peak is published."""
        return self.float32 * 1e3 / (self.processors * self.float32_a_clock)

    @property
    def bytes_a_clock(self) -> float:
        """Memory traffic per clock and processor."""
        return self.bandwidth / (self.processors * self.clock)


# Rates are from the CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions"
# (results per clock and multiprocessor), for compute capabilities 8.0, 9.0 and 10.0: float32
# arithmetic 64, 128, 128; integer multiplication, shift, logic, comparison, minimum and maximum 64;
# reciprocal, square root, log2 and exp2 16. Conversions in the same unit are counted at 16 too,
# although some may be faster. Four schedulers issue one warp instruction each. The guide has no
# line for the packing conversion F2FP; the profiler's guide names the ALU as its unit from Ampere
# on, so it gets the ALU's 64. From 9.0 on, half of the float32 lanes (the heavy pipe) also multiply
# integers, at 64. Two-operand float32 instructions of 10.0 (FFMA2) count as two operations against
# the published 128.
_AMPERE = {ISSUE: 128, FMA: 64, HEAVY: 64, HALF: 128, ALU: 64, SPECIAL: 16, DOUBLE: 32}
_HOPPER = {ISSUE: 128, FMA: 128, HEAVY: 64, ALU: 64, SPECIAL: 16, DOUBLE: 64}
_BLACKWELL = _HOPPER
# From AMD's "CDNA 3" white paper and instruction set: a compute unit has four SIMD units of 16
# lanes, so it executes 64 threads' vector instructions per clock (a packed one counts twice towards
# the peak), and alongside them one scalar instruction for a wave of 64.
_CDNA3 = {VECTOR: 64, SCALAR: 64}

A100 = GPU("A100", "sm_80", 108, 19.5, 128, 2039, _AMPERE)
"""SXM, 80 GB: data sheet "NVIDIA A100 Tensor Core GPU"."""
H100 = GPU("H100", "sm_90", 132, 67, 256, 3350, _HOPPER)
"""SXM, 80 GB: data sheet "NVIDIA H100 Tensor Core GPU"."""
B200 = GPU("B200", "sm_100", 148, 75, 256, 8000, _BLACKWELL)
"""One eighth of HGX B200, and "up to" 8 TB/s: data sheet "NVIDIA Blackwell". Its driver reports 148
multiprocessors, and a memory clock and bus that give 7.7 TB/s.
"""
MI300X = GPU("MI300X", "gfx942", 304, 163.4, 256, 5300, _CDNA3)
"""Data sheet "AMD Instinct MI300X"."""

GPUS = (A100, H100, B200, MI300X)


class Roofline(NamedTuple):
    """The time of the arithmetic divided by that of memory."""

    ratio: float
    unit: str
    """The busiest unit."""


def roofline(code: Code, gpu: GPU) -> Roofline:
    """The roofline of a kernel compiled for this GPU."""
    if code.target != gpu.target:
        raise ValueError(f"code for {code.target} does not run on {gpu.name}")
    clocks = {unit: code.operations.get(unit, 0) / rate for unit, rate in gpu.rates.items()}
    unit = max(clocks, key=lambda unit: clocks[unit])
    return Roofline(clocks[unit] * gpu.bytes_a_clock / code.bytes_per_element, unit)
