"""Timing a call among others: round-robin, so that whatever slows the machine slows them all."""

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
"""A sample repeats its call for about so long: the clock's own cost then is below a thousandth."""
MOST_CALLS = 2_000
WARM_CALLS = 3
WARM_NS = 4_000_000
"""A shorter call is repeated at least `WARM_CALLS` times, after one that finds its caches cold."""


Clock = Callable[[], int]
"""Nanoseconds from some beginning: of the wall, or of the processor, which counts what the process
worked and so leaves out what it waited for others."""
WALL: Clock = time.perf_counter_ns
PROCESSOR: Clock = time.process_time_ns


@dataclass
class Timing:
    """Samples of one call, each a time per element (or per call) in nanoseconds."""

    samples: list[float] = field(default_factory=list)
    late: int = 0
    """Samples in which a GPU may have waited for the host; 0 on a CPU."""

    @property
    def min(self) -> float:
        """The fastest sample: what the code costs without its neighbours."""
        return min(self.samples)

    @property
    def median(self) -> float:
        """The sample in the middle."""
        return statistics.median(self.samples)

    @property
    def is_late(self) -> bool:
        """Whether most samples are: they then hold the host's time, at least in part."""
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
        """The sample that a share q of all falls below, linearly interpolated."""
        ordered = sorted(self.samples)
        place = q * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True)
class Call:
    """What is timed."""

    run: Callable[[], Any]
    """The call; its result is dropped at once, as if it were a user's temporary."""
    prepare: Callable[[], Any] | None = None
    """Called before each sample, outside the time: restores what the call destroys."""
    most_calls: int = MOST_CALLS
    """How often a sample may repeat it before it must be prepared again."""

    def sample(self, calls: int, clock: Clock = WALL) -> float:
        """Nanoseconds a call, over so many calls in a row; the first, colder one is not counted."""
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
    """Time every call once a round, until the seconds are over; nanoseconds a call.

    There are at least `least` rounds however long they take, and at most `most`. After the least a
    call that has used up its equal share of the time sits out, so that slow ones don't starve
    the others of samples. The seconds are those of the wall whatever the clock is.
    """
    timings = {key: Timing() for key in calls}
    share = seconds * 1e9 / len(calls)
    with no_garbage_collection():
        counts = {key: call.calls_a_sample() for key, call in calls.items()}
        left = dict.fromkeys(calls, share)
        for done in range(most):
            playing = [key for key in calls if done < least or left[key] > 0]
            if not playing:
                break
            for key in playing:
                begin = time.perf_counter_ns()
                timings[key].samples.append(calls[key].sample(counts[key], clock))
                left[key] -= time.perf_counter_ns() - begin
    return timings


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect garbage before a block, and not within it."""
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
    """Let torch use so many threads within a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
