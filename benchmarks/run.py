"""Runs a suite: the gate, the jobs, the results."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Hashable
from dataclasses import asdict, replace
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from anl_kernels.backends.selection import choose_backend
from benchmarks.environment import describe
from benchmarks.jobs import Job, JobFailed, Limit, run_job
from benchmarks.results import Case, Check, Results, case_from, merged
from benchmarks.suite import Spec, Suite
from benchmarks.timing import Budget

console = Console(stderr=True)


class WrongResults(RuntimeError):
    """The gate is red."""

    def __init__(self, checks: list[Check]) -> None:
        wrong = (f"WRONG {c.what}: error {c.error:.2e} > {c.bound:.2e}" for c in checks)
        super().__init__("\n".join(wrong))


def run(name: str, suite: Suite, options: Namespace, limit: Limit) -> Results:
    """Measure a suite.

    Raises:
        WrongResults: the library's values are not right; nothing was measured.
    """
    start, created = monotonic(), datetime.now(timezone.utc)
    environment = describe(options.threads, options.device)
    specs = suite.specs(options)
    with console.status(f"{name}: checking against float64"):
        checks = _check(specs, options.threads, limit)
    wrong = [check for check in checks if not check.passed]
    if wrong:
        raise WrongResults(wrong)
    cases, failures = _measure(name, jobs(specs, options), options.threads, limit)
    return Results(
        suite=name,
        created=created.isoformat(timespec="seconds"),
        environment=environment,
        arguments={k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        backend=choose_backend("cpu") if options.device == "cpu" else "auto",
        checks=checks,
        cases=merged(cases),
        failures=failures,
        seconds=round(monotonic() - start, 1),
    )


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
        for spec in (replace(s, subjects=(name,)) for s in together for name in s.subjects):
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
    label = f"{spec.table} {spec.problem.shape}, {how}"
    return Job(f"benchmarks.cases:{function}", arguments, label, spec.regime, cases)


def _check(specs: list[Spec], threads: int | None, limit: Limit) -> list[Check]:
    gate = Job("benchmarks.cases:check", {"specs": list(map(asdict, specs))}, "correctness gate")
    try:
        return [Check(**record) for record in run_job(gate, threads, limit)]
    except JobFailed as failure:
        return [Check(str(failure), math.nan, 0.0)]


def _measure(
    name: str, jobs: list[Job], threads: int | None, limit: Limit
) -> tuple[list[Case], list[str]]:
    cases: list[Case] = []
    failures: list[str] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=sum(job.cases for job in jobs))
        for job in jobs:
            progress.update(task, description=f"{name}: {job.label}")
            try:
                for record in run_job(job, threads, limit):
                    cases.append(case_from(record))
                    progress.advance(task)
            except JobFailed as failure:
                failures.append(str(failure))
    return cases, failures
