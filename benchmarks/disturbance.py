"""How busy other processes kept the CPUs: figures of a disturbed run are not to be believed.

One preempted thread holds up all that wait for it at the end of a parallel loop, so that a
compilation beside a benchmark does not make it somewhat slower, but ten times.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

STAT = Path("/proc/stat")
IDLE = (3, 4)
"""Fields of its first line: idle, and waiting for a disk."""
GUESTS = 8
"""From here on its fields are contained in the earlier ones."""


def watch() -> Callable[[], float] | None:
    """Begin to watch; the function returned gives the share of all CPUs' time that others took.

    Time that the hypervisor stole counts; children that have been waited for are not others.
    None where the system does not tell.
    """
    if not STAT.exists():
        return None
    start, taken = perf_counter(), _seconds_of_others()

    def share() -> float:
        capacity = (perf_counter() - start) * (os.cpu_count() or 1)
        return max(0.0, _seconds_of_others() - taken) / capacity

    return share


def _seconds_of_others() -> float:
    ticks = [int(field) for field in STAT.read_text().split("\n", 1)[0].split()[1:]]
    busy = sum(n for i, n in enumerate(ticks[:GUESTS]) if i not in IDLE)
    return busy / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])
