"""Time several calls round-robin, so that whatever slows the machine slows all of them."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import torch

SAMPLE_NS = 100_000
"""A sample repeats its call for about this long, so the clock costs less than a thousandth of it.
"""
MOST_CALLS = 2_000
WARM_CALLS = 3
WARM_NS = 4_000_000
"""A shorter call is repeated at least `WARM_CALLS` times, after one call with cold caches."""


Clock = Callable[[], int]
"""Nanoseconds since some start: either wall time, or processor time, which counts only the
process's own work and so leaves out waiting for others.
"""
WALL: Clock = time.perf_counter_ns
PROCESSOR: Clock = time.process_time_ns


@dataclass
class Timing:
    """Samples of one call, each a time in nanoseconds per element (or per call)."""

    samples: list[float] = field(default_factory=list)
    late: int = 0
    """Samples in which a GPU may have waited for the host; 0 on a CPU."""

    @property
    def min(self) -> float:
        """The fastest sample: the cost of the code without disturbance from other processes."""
        return min(self.samples)

    @property
    def median(self) -> float:
        """The median sample."""
        return statistics.median(self.samples)

    @property
    def is_late(self) -> bool:
        """Whether most samples are late; they then include host time, at least in part."""
        return 2 * self.late > len(self.samples)

    @property
    def mean(self) -> float:
        """The arithmetic mean."""
        return statistics.fmean(self.samples)

    @property
    def std(self) -> float:
        """The standard deviation of the samples; 0 for a single sample."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0

    def quantile(self, q: float) -> float:
        """The sample below which a fraction q of all samples lies, linearly interpolated."""
        ordered = sorted(self.samples)
        place = q * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True)
class Call:
    """A call to be timed."""

    run: Callable[[], Any]
    """The call; its result is dropped at once, like a temporary in user code."""
    prepare: Callable[[], Any] | None = None
    """Called before each sample, outside the timing; restores what the call destroys."""
    most_calls: int = MOST_CALLS
    """How often a sample may repeat the call before it must be prepared again."""

    def sample(self, calls: int, clock: Clock = WALL) -> float:
        """Nanoseconds per call, over this many calls in a row, not counting a first, colder one."""
        run = self.run
        if self.prepare is not None:
            self.prepare()
        if calls > 1:
            run()
        begin = clock()
        for _ in repeat(None, calls):
            run()
        return (clock() - begin) / calls

    def calls_a_sample(self) -> int:
        """How many calls fill a sample."""
        once = self.sample(1)
        if once > 10 * WARM_NS:
            return 1
        once = min(self.sample(1) for _ in range(3))
        least = WARM_CALLS if once < WARM_NS else 1
        return max(least, min(self.most_calls, math.ceil(SAMPLE_NS / max(once, 1))))


def round_robin(
    calls: Mapping[Any, Call],
    *,
    seconds: float,
    least: int = 3,
    most: int = 200,
    clock: Clock = WALL,
) -> dict[Any, Timing]:
    """Time every call once per round until the time is over; in nanoseconds per call.

    There are at least `least` rounds, however long they take, and at most `most`. After the first
    `least` rounds, a call that has used up its equal share of the time is skipped, so that slow
    calls do not deprive the others of samples. The time limit is wall time, whatever the clock is.
    """
    timings = {key: Timing() for key in calls}
    share = seconds * 1e9 / len(calls)
    with no_garbage_collection():
        counts = {key: call.calls_a_sample() for key, call in calls.items()}
        remaining = dict.fromkeys(calls, share)
        for count in range(most):
            playing = [key for key in calls if count < least or remaining[key] > 0]
            if not playing:
                break
            for key in playing:
                begin = time.perf_counter_ns()
                timings[key].samples.append(calls[key].sample(counts[key], clock))
                remaining[key] -= time.perf_counter_ns() - begin
    return timings


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect garbage before the block, and not during it."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Make torch use this many threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
