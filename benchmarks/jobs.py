"""Runs measurements in fresh interpreters, each under the allocator regime it asks for."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from threading import TIMEOUT_MAX, Timer
from time import monotonic
from typing import Any

from benchmarks.environment import ROOT

REGIMES = {
    "default": {},
    # Freed memory stays mapped: without the page faults of fresh memory, the kernel shows.
    "warm": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(16 << 30)},
}
"""Environment variables that glibc reads when a process starts."""


@dataclass(frozen=True)
class Job:
    """A generator of JSON-able records, ``module:name``, to be run in a process of its own.

    One crash costs one job, and no job inherits another's heap.
    """

    function: str
    arguments: dict[str, Any]
    label: str
    """For people."""
    regime: str = "default"
    cases: int = 1
    """How many records it yields."""


class JobFailed(RuntimeError):
    """The process of a job ended before its time."""


class Limit:
    """Time that all jobs of a run have together, from now on."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = math.inf if seconds is None else seconds
        self._end = monotonic() + self.seconds

    def left(self) -> float:
        """Seconds, not below 0."""
        return max(0.0, self._end - monotonic())


def run_job(job: Job, threads: int | None, limit: Limit | None = None) -> Iterator[dict[str, Any]]:
    """Yield the job's records as they come.

    Raises:
        JobFailed: after the last record that the process could deliver.
    """
    limit = limit or Limit(None)
    if not limit.left():
        raise JobFailed(f"{job.label}: left out, the limit of {limit.seconds:g} s was spent")
    worker = [sys.executable, "-m", "benchmarks.worker", json.dumps(asdict(job))]
    process = subprocess.Popen(
        worker, cwd=ROOT, env=_environment(job, threads), stdout=subprocess.PIPE, text=True
    )
    killer = Timer(min(limit.left(), TIMEOUT_MAX), process.kill)
    killer.daemon = True
    killer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
        if process.wait():
            late = f"stopped, the limit of {limit.seconds:g} s was spent"
            reason = f"exit status {process.returncode}" if limit.left() else late
            raise JobFailed(f"{job.label}: {reason}")
    finally:
        killer.cancel()
        process.kill()
        process.communicate()


def _environment(job: Job, threads: int | None) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    # One: torch.compile would keep a pool of processes beside the measurement otherwise.
    own = {"TORCHINDUCTOR_COMPILE_THREADS": "1", **REGIMES[job.regime]}
    if threads is not None:
        own["OMP_NUM_THREADS"] = str(threads)
    return inherited | own
