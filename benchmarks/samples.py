"""From samples to quantiles and ratios."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.clocks import Reading
from benchmarks.results import Quantiles

AT = {"min": 0, "p10": 0.1, "p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9, "max": 1}
"""The fields of ``Quantiles``."""


@dataclass
class Samples:
    """Durations of one contender, by the round they were taken in."""

    seconds: dict[int, float] = field(default_factory=dict)
    first_call: float | None = None
    error: str | None = None
    host_seconds: list[float] = field(default_factory=list)
    """What the host took to queue a step, where that is not its duration."""
    caught_up: int = 0
    """Steps in which the GPU may have waited for the host."""

    def take(self, number: int, reading: Reading) -> None:
        """Keep the reading of a round."""
        self.seconds[number] = reading.seconds
        if reading.host_seconds is not None:
            self.host_seconds.append(reading.host_seconds)
            self.caught_up += reading.caught_up

    def forget(self) -> None:
        """Begin anew after warming up."""
        self.seconds.clear()
        self.host_seconds.clear()
        self.caught_up = 0

    @property
    def spent(self) -> float:
        """Seconds the contender has had."""
        return sum(self.seconds.values())


def quantiles_ms(seconds: Iterable[float]) -> Quantiles:
    """Quantiles in milliseconds."""
    values = 1e3 * np.fromiter(seconds, float)
    at = dict(zip(AT, np.quantile(values, list(AT.values())).tolist(), strict=True))
    return Quantiles(**at, samples=len(values))


def ratio(a: Samples, b: Samples) -> float | None:
    """Median of a's time over b's, of the rounds that both took part in.

    Both were measured within a moment of each other there, so what slows the machine down for
    longer than that cancels, as it does not in a ratio of medians.
    """
    common = a.seconds.keys() & b.seconds.keys()
    if not common:
        return None
    return float(np.median([a.seconds[i] / b.seconds[i] for i in common]))
