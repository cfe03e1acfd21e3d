"""Runs a suite: the gate, the jobs, the results."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Hashable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from anl_kernels.backends.choice import best
from benchmarks.cases import case_of, spec_from
from benchmarks.contenders import CONTENDERS
from benchmarks.environment import describe
from benchmarks.jobs import Job, JobFailed, Limit, OutOfTime, run_job
from benchmarks.results import Case, Check, Measurement, Results, case_from, merged
from benchmarks.suite import Spec, Suite
from benchmarks.timing import Budget

INTERRUPTED = 130
"""The exit status of what is interrupted, as shells have it."""
console = Console(stderr=True)


class WrongResults(RuntimeError):
    """The gate is red."""

    def __init__(self, checks: list[Check]) -> None:
        wrong = (f"WRONG {c.what}: error {c.error:.2e} > {c.bound:.2e}" for c in checks)
        super().__init__("\n".join(wrong))


@dataclass
class Measured:
    """What the jobs of a run leave."""

    cases: list[Case]
    failures: list[str]
    status: int = 0
    """For the shell: 1 if a process died, ``INTERRUPTED`` if somebody did that to the run."""


def run(name: str, suite: Suite, options: Namespace, limit: Limit) -> tuple[Results, int]:
    """Measure a suite; the results, without cases if there was no time, and an exit status.

    Raises:
        WrongResults: the library's values are not right; nothing was measured.
        OutOfTime: the limit was spent before that was known.
    """
    start, created = monotonic(), datetime.now(timezone.utc)
    environment = describe(options.threads, options.device)
    specs = suite.specs(options)
    with console.status(f"{name}: checking against float64"):
        checks = _check(specs, options.threads, limit)
    wrong = [check for check in checks if not check.passed]
    if wrong:
        raise WrongResults(wrong)
    measured = _measure(name, jobs(specs, options), options.threads, limit)
    results = Results(
        suite=name,
        created=created.isoformat(timespec="seconds"),
        environment=environment,
        arguments={k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        backend=best("cpu") if options.device == "cpu" else "auto",
        checks=checks,
        cases=merged(measured.cases),
        failures=measured.failures,
        seconds=round(monotonic() - start, 1),
    )
    return results, measured.status


def jobs(specs: list[Spec], options: Namespace) -> list[Job]:
    """A process for each shape and regime of a table, and for each figure of the CPU's memory."""
    budget = asdict(Budget(options.seconds, options.rounds))
    found = []
    for _, group in groupby(specs, _process):
        together = list(group)
        if together[0].measured == "time":
            arguments = {"specs": list(map(asdict, together)), "budget": budget}
            found.append(_job("time", together[0], arguments, len(together)))
            continue
        for spec in (replace(s, contenders=(name,)) for s in together for name in s.contenders):
            found.append(_job("memory", spec, {"specs": [asdict(spec)]}))
    return found


def _process(spec: Spec) -> tuple[Hashable, ...]:
    """What has to be equal in one process: else a case would begin on another's heap."""
    problem = spec.problem
    sizes = problem.rows, problem.classes, problem.hidden, problem.grid
    return spec.measured, spec.table, spec.regime, spec.backend, sizes


def _job(function: str, spec: Spec, arguments: dict[str, Any], cases: int = 1) -> Job:
    device = spec.problem.device
    how = spec.regime if device == "cpu" else f"{device}, {spec.backend}"
    if function == "memory":
        how = f"{spec.problem.dtype}, {spec.contenders[0]}"
    label = f"{spec.table} {spec.problem.shape}, {how}"
    return Job(f"benchmarks.cases:{function}", arguments, label, spec.regime, cases)


def _check(specs: list[Spec], threads: int | None, limit: Limit) -> list[Check]:
    arguments = {"specs": list(map(asdict, specs))}
    gate = Job("benchmarks.cases:check", arguments, "correctness gate", "warm")
    try:
        return [Check(**record) for record in run_job(gate, threads, limit)]
    except OutOfTime:
        raise
    except JobFailed as failure:
        return [Check(str(failure), math.nan, 0.0)]


def _measure(name: str, jobs: list[Job], threads: int | None, limit: Limit) -> Measured:
    measured = Measured([], [])
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=sum(job.cases for job in jobs))
        for job in jobs:
            progress.update(task, description=f"{name}: {job.label}")
            done = []
            try:
                for record in run_job(job, threads, limit):
                    done.append(case_from(record))
                    progress.advance(task)
            except OutOfTime as failure:
                measured.failures.append(str(failure))
            except JobFailed as failure:
                measured.failures.append(str(failure))
                measured.status = 1
                done += _unfinished(job, len(done), failure.reason)
            except KeyboardInterrupt:
                measured.failures.append(f"{job.label}: interrupted, and what was to follow")
                measured.status = INTERRUPTED
                return measured
            finally:
                measured.cases += done
    return measured


def _unfinished(job: Job, finished: int, reason: str) -> list[Case]:
    """The cases that a process which died has not delivered; each contender says why."""
    return [
        case_of(spec, [Measurement(s, CONTENDERS[s].label, error=reason) for s in spec.contenders])
        for spec in map(spec_from, job.arguments["specs"][finished:])
    ]
