"""Time a GPU call, alternating with others, by events on the stream, not by the host clock.

A sample is queued without waiting:

    prepare, flush, start event, call, end event

The flush reads more memory than any cache holds. So the call finds none of its data in a cache, and
the GPU is busy while the host queues the call to be timed. Afterwards we check whether it really
was busy: if the GPU had already reached the start event before the end event was queued, it may
have waited for the host in between. The sample is then retaken behind twice as many flushes. A
sample that is late even behind `MOST_FLUSHES` of them is kept and counted: a call that itself waits
for the GPU is always late.

A time includes what the GPU needs to start a kernel, which dominates for small tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .timing import Call, Timing, no_garbage_collection

FLUSH = 512 << 20
"""The fewest bytes that a flush reads: twice the largest cache of any GPU, the 256 MiB of MI300X,
which its driver does not report.
"""
CACHES = 4
"""A flush reads at least this many times the reported cache."""
MOST_FLUSHES = 64
ROUNDS, WARM_ROUNDS = 50, 10


class Stopwatch:
    """Takes samples on the current stream of a device."""

    def __init__(
        self, device: torch.device | str, cache: int, event: Callable[[], Any] | None = None
    ) -> None:
        """`cache` is the size of the device's last-level cache, in bytes; `event` makes events that
        take the time, in place of torch.cuda's.
        """
        self._event = event
        self._memory = torch.zeros(max(FLUSH, CACHES * cache) // 4, device=device)

    def flush(self) -> None:
        """Read more than the caches hold. Unlike written data, data read can be dropped from the
        caches at no cost to later operations.
        """
        self._memory.amax()

    def sample(self, call: Call, flushes: int = 1) -> tuple[float, bool]:
        """Nanoseconds of the call, and whether the GPU may have waited for the host."""
        if call.prepare is not None:
            call.prepare()
        for _ in range(flushes):
            self.flush()
        if self._event is None:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        else:
            start, end = self._event(), self._event()
        start.record()
        call.run()
        end.record()
        is_late = start.query()
        end.synchronize()
        return start.elapsed_time(end) * 1e6, is_late

    def time(
        self,
        calls: Mapping[Any, Call],
        *,
        rounds: int = ROUNDS,
        warm: int = WARM_ROUNDS,
    ) -> dict[Any, Timing]:
        """Time every call once per round, after some warm-up rounds."""
        timings = {key: Timing() for key in calls}
        flushes = dict.fromkeys(calls, 1)
        with no_garbage_collection():
            for done in range(-warm, rounds):
                for key, call in calls.items():
                    nanoseconds, is_late = self.sample(call, flushes[key])
                    while is_late and flushes[key] < MOST_FLUSHES:
                        flushes[key] *= 2
                        nanoseconds, is_late = self.sample(call, flushes[key])
                    if done >= 0:
                        timings[key].samples.append(nanoseconds)
                        timings[key].late += is_late
        return timings
