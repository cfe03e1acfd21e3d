"""Clocks for steps: the host's, and the GPU's own."""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple, Protocol

import torch

Step = Callable[[], object]
"""What is timed."""

LEAD_CYCLES = 2_000_000
"""Of the GPU's clock, about a millisecond: more than any contender takes to queue a step."""


class Reading(NamedTuple):
    """What a clock says of one step."""

    seconds: float
    host_seconds: float | None = None
    """Until the host had queued the step, where it does not wait for its end."""
    caught_up: bool = False
    """The GPU began before the host had queued all: the time may contain waiting for the host."""


class Clock(Protocol):
    """Times steps, one at a time."""

    warm_up: float
    """Seconds of rounds that do not count; one round at the least."""

    def first(self, step: Step) -> Reading:
        """A step that may compile: from its call to its end."""
        ...

    def time(self, step: Step) -> Reading:
        """A step as a training loop meets it."""
        ...

    def recover(self) -> None:
        """Clean up after a step that raised."""
        ...


class HostClock:
    """For steps that have ended when they return."""

    warm_up = 0.0

    def first(self, step: Step) -> Reading:
        return self.time(step)

    def time(self, step: Step) -> Reading:
        start = perf_counter()
        step()
        return Reading(perf_counter() - start)

    def recover(self) -> None:
        pass


class OwnClock(HostClock):
    """For steps that return the seconds that count."""

    def time(self, step: Step) -> Reading:
        return Reading(float(step()))  # type: ignore[arg-type]


class QueueClock(HostClock):
    """For what the host takes to queue a step; the device has nothing else to do."""

    def first(self, step: Step) -> Reading:
        torch.cuda.synchronize()
        start = perf_counter()
        step()
        torch.cuda.synchronize()
        return Reading(perf_counter() - start)

    def time(self, step: Step) -> Reading:
        torch.cuda.synchronize()
        return super().time(step)

    def recover(self) -> None:
        """Return the memory that a peer had taken before there was no more."""
        gc.collect()
        torch.cuda.empty_cache()


class CudaClock(QueueClock):
    """GPU time between two events on the current stream.

    The GPU is kept busy until the step is queued, as it is in training, where the host runs ahead:
    its launches are then no part of the time, unless the step itself waits for the GPU. Nothing
    here waits between the events.
    """

    warm_up = 0.3
    """An idle GPU lowers its clocks; this is for them to rise again."""

    def time(self, step: Step) -> Reading:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(LEAD_CYCLES)
        begin.record()
        start = perf_counter()
        step()
        host_seconds = perf_counter() - start
        end.record()
        caught_up = begin.query()
        end.synchronize()  # an error of the GPU is raised here, at the step that made it
        return Reading(begin.elapsed_time(end) / 1e3, host_seconds, caught_up)
