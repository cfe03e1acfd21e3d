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
from benchmarks.bounds import BARS
from benchmarks.devices import DEVICES
from benchmarks.environment import describe, device_name
from benchmarks.jobs import Job, JobFailed, Limit, run_job
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
        _show(bars.render(results, BARS, args.every))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Arguments of the command line; ``--device`` and ``--quick`` change defaults."""
    early = argparse.ArgumentParser(prog="python -m benchmarks", add_help=False)
    _add_settings(early)
    settings = early.parse_known_args(argv)[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, suite in SUITES.items():
        runner = _add_suite(commands, name, suite)
        runner.set_defaults(**suite.defaults(settings.device, settings.quick))
    _add_reader(commands, "show", "print the tables of a file")
    reader = _add_reader(commands, "bars", "hold a file to the bars of the design")
    reader.add_argument("--every", action="store_true", help="every case, not the worst")
    return parser.parse_args(argv)


def _add_settings(parser: argparse.ArgumentParser, **choices: Any) -> None:
    """Those that other defaults depend on."""
    parser.add_argument("--device", default="cpu", help="with defaults of its own", **choices)
    parser.add_argument("--quick", action="store_true", help="other defaults, under one minute")


def _add_suite(commands: Any, name: str, suite: Suite) -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = commands.add_parser(name, help=suite.title, formatter_class=formatter)
    suite.add_arguments(parser)
    _add_settings(parser, choices=DEVICES)
    add = parser.add_argument
    add("--limit", type=float, help="seconds, after which what is not measured is left out")
    add("--threads", type=int, help="of PyTorch; its own choice if not given")
    add("--out", type=Path, help="JSON file to write; {device} in it becomes the device's name")
    add("--markdown", type=Path, help="Markdown file to write, likewise")
    add("--bars", action="store_true", help="hold the results to the bars of the design, too")
    return parser


def _add_reader(commands: Any, name: str, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help)
    parser.add_argument("file", type=Path, help="JSON that a suite has written")
    return parser


def _run(args: argparse.Namespace, suite: Suite) -> int:
    reason = DEVICES[args.device].why_not()
    problem = f"--device {args.device}: {reason}" if reason else suite.why_not(args)
    if problem:
        console.print(problem, markup=False)
        return 2
    environment, created = describe(args.threads, args.device), datetime.now(timezone.utc)
    limit = Limit(args.limit)
    with console.status("checking against float64"):
        checks = _check(suite.gate(args), args.threads, limit)
    wrong = [check for check in checks if not check.passed]
    for check in wrong:
        console.print(f"WRONG {check.what}: error {check.error:.2e} > {check.bound:.2e}")
    if wrong:
        return 1
    cases, failures = _measure(suite.jobs(args), args.threads, limit)
    results = Results(
        suite=args.command,
        created=created.isoformat(timespec="seconds"),
        environment=environment,
        arguments={k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        backend=choose_backend("cpu") if args.device == "cpu" else "auto",
        checks=checks,
        cases=cases,
        failures=failures,
    )
    _write(args.out, results.to_json(), environment)
    _write(args.markdown, suite.render(results), environment)
    _show(suite.render(results))
    if args.bars:
        _show(f"\n{bars.render(results, BARS)}")
    return 0


def _check(gate: Job, threads: int | None, limit: Limit) -> list[Check]:
    try:
        return [Check(**record) for record in run_job(gate, threads, limit)]
    except JobFailed as failure:
        return [Check(str(failure), math.nan, 0.0)]


def _measure(jobs: list[Job], threads: int | None, limit: Limit) -> tuple[list[Case], list[str]]:
    cases: list[Case] = []
    failures: list[str] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("", total=sum(job.cases for job in jobs))
        for job in jobs:
            progress.update(task, description=job.label)
            try:
                for record in run_job(job, threads, limit):
                    cases.append(case_from(record))
                    progress.advance(task)
            except JobFailed as failure:
                failures.append(str(failure))
    return cases, failures


def _write(path: Path | None, text: str, environment: dict[str, Any]) -> None:
    if path is not None:
        path = Path(str(path).replace("{device}", device_name(environment)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _show(text: str) -> None:
    """For eyes on a terminal, as it is into a pipe."""
    out = Console()
    if out.is_terminal:
        out.print(Markdown(text))
    else:
        print(text, end="")
