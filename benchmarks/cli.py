"""The command line: run a suite, or read a file that a run has left."""

from __future__ import annotations

import argparse
import math
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from anl_kernels.backends.selection import choose_backend
from benchmarks import bars
from benchmarks.environment import describe
from benchmarks.jobs import Job, JobFailed, run_job
from benchmarks.results import Case, Check, Results, case_from
from benchmarks.rows.suite import ROWS
from benchmarks.suite import Suite

SUITES = {"rows": ROWS}

console = Console(stderr=True)


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status."""
    args = parse(argv)
    if args.command in SUITES:
        return _run(args, SUITES[args.command])
    results = Results.from_json(args.file.read_text(encoding="utf-8"))
    if args.command == "show":
        _show(SUITES[results.suite].render(results))
    else:
        _show(bars.render(results, args.every))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Arguments of the command line; ``--quick`` changes defaults only."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runners = {name: _add_suite(commands, name, suite) for name, suite in SUITES.items()}
    _add_reader(commands, "show", "print the tables of a file")
    reader = _add_reader(commands, "bars", "hold a file to the bars of the design")
    reader.add_argument("--every", action="store_true", help="every case, not the worst")
    args = parser.parse_args(argv)
    if args.command in SUITES and args.quick:
        runners[args.command].set_defaults(**SUITES[args.command].quick)
        return parser.parse_args(argv)
    return args


def _add_suite(commands: Any, name: str, suite: Suite) -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = commands.add_parser(name, help=suite.title, formatter_class=formatter)
    suite.add_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="other defaults, under one minute")
    parser.add_argument("--threads", type=int, help="of PyTorch; its own choice if not given")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--markdown", type=Path, help="Markdown file to write")
    return parser


def _add_reader(commands: Any, name: str, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help)
    parser.add_argument("file", type=Path, help="JSON that a suite has written")
    return parser


def _run(args: argparse.Namespace, suite: Suite) -> int:
    environment, created = describe(args.threads), datetime.now(timezone.utc)
    with console.status("checking against float64"):
        checks = _check(suite.gate(args), args.threads)
    wrong = [check for check in checks if not check.passed]
    for check in wrong:
        console.print(f"WRONG {check.what}: error {check.error:.2e} > {check.bound:.2e}")
    if wrong:
        return 1
    cases, failures = _measure(suite.jobs(args), args.threads)
    results = Results(
        suite=args.command,
        created=created.isoformat(timespec="seconds"),
        environment=environment,
        arguments={k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        backend=choose_backend("cpu"),
        checks=checks,
        cases=cases,
        failures=failures,
    )
    _write(args.out, results.to_json())
    _write(args.markdown, suite.render(results))
    _show(suite.render(results))
    return 0


def _check(gate: Job, threads: int | None) -> list[Check]:
    try:
        return [Check(**record) for record in run_job(gate, threads)]
    except JobFailed as failure:
        return [Check(str(failure), math.nan, 0.0)]


def _measure(jobs: list[Job], threads: int | None) -> tuple[list[Case], list[str]]:
    cases: list[Case] = []
    failures: list[str] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=sum(job.cases for job in jobs))
        for job in jobs:
            progress.update(task, description=job.label)
            try:
                for record in run_job(job, threads):
                    cases.append(case_from(record))
                    progress.advance(task)
            except JobFailed as failure:
                failures.append(str(failure))
    return cases, failures


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _show(text: str) -> None:
    """For eyes on a terminal, as it is into a pipe."""
    out = Console()
    if out.is_terminal:
        out.print(Markdown(text))
    else:
        print(text, end="")
