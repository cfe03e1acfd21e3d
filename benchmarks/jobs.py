"""Runs measurements in fresh interpreters, each under the allocator regime it asks for."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from tempfile import TemporaryFile
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

    def __init__(self, job: Job, reason: str) -> None:
        super().__init__(f"{job.label}: {reason}")
        self.reason = reason


class OutOfTime(JobFailed):
    """... because the limit was spent; nothing is wrong with it."""


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
        OutOfTime: that is so because the limit was spent.
    """
    limit = limit or Limit(None)
    spent = f"the limit of {limit.seconds:g} s was spent"
    if not limit.left():
        raise OutOfTime(job, f"left out, {spent}")
    process = _start(job, threads)
    killer = Timer(min(limit.left(), TIMEOUT_MAX), _kill, [process])
    killer.daemon = True
    killer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
        if process.wait():
            if not limit.left():
                raise OutOfTime(job, f"stopped, {spent}")
            raise JobFailed(job, f"exit status {process.returncode}")
    finally:
        killer.cancel()
        _kill(process)
        process.communicate()


def _start(job: Job, threads: int | None) -> subprocess.Popen[str]:
    """The worker, which finds the job in a file: an argument may not be as long as many specs."""
    with TemporaryFile("w+", encoding="utf-8") as text:
        json.dump(asdict(job), text)
        text.seek(0)
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            cwd=ROOT,
            env=_environment(job, threads),
            stdin=text,
            stdout=subprocess.PIPE,
            text=True,
            # A group of its own, which is ended with whatever the worker has started.
            start_new_session=True,
        )


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):  # It ended just now.
            os.killpg(process.pid, signal.SIGKILL)


def _environment(job: Job, threads: int | None) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    # One: torch.compile would keep a pool of processes beside the measurement otherwise.
    own = {"TORCHINDUCTOR_COMPILE_THREADS": "1", **REGIMES[job.regime]}
    if threads is not None:
        own["OMP_NUM_THREADS"] = str(threads)
    return inherited | own
