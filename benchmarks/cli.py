"""The command line: run suites, or read files that a run has left."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from benchmarks import compare, report, tables, targets
from benchmarks.arguments import EVERY, MISSED, parse
from benchmarks.contenders import is_library
from benchmarks.devices import DEVICES
from benchmarks.environment import describe, device_name
from benchmarks.files import write
from benchmarks.jobs import Limit, OutOfTime
from benchmarks.results import Results
from benchmarks.run import INTERRUPTED, WrongResults, console, run
from benchmarks.suites import SUITES


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status."""
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        return COMMANDS.get(args.command, _run_one)(args)
    except (ImportError, OSError, ValueError) as error:
        _tell(f"python -m benchmarks: {error}")
        return 2
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED


def _run_all(args: argparse.Namespace) -> int:
    limit, status, documented = Limit(args.limit), 0, 0
    suites = [(_of_all(args, name), _alone(args, name).limit) for name in args.suites]
    for options, _ in suites:
        _check(options)
    folder = _folder(args)
    for options, own in suites:
        if not limit.left():
            _tell(f"{options.command}: left out, the limit of {limit.seconds:g} s was spent")
            continue
        # A suite that takes long leaves time to the others.
        status = max(status, _run(options, folder, Limit(min(Limit(own).seconds, limit.left()))))
        documented = _document(folder)
        if status == INTERRUPTED:
            break
    return status or documented


def _of_all(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """The arguments of one suite of all."""
    return argparse.Namespace(**vars(_alone(args, name)) | vars(args) | {"command": name})


def _alone(args: argparse.Namespace, name: str) -> argparse.Namespace:
    return parse([name, "--device", args.device, *(["--quick"] if args.quick else [])])


def _run_one(args: argparse.Namespace) -> int:
    _check(args)
    folder = _folder(args)
    status, documented = _run(args, folder, Limit(args.limit)), _document(folder)
    return status or documented


def _check(options: argparse.Namespace) -> None:
    """See that what is asked for can be measured.

    Raises:
        ValueError: it cannot.
    """
    if problem := _complaint(options) or _complaint_of_contenders(options):
        raise ValueError(problem)
    if not SUITES[options.command].specs(options):
        raise ValueError(f"{', '.join(options.tables)}: no table of these has the contenders")


def _folder(args: argparse.Namespace) -> Path:
    """The folder of the results, where they can be written.

    Raises:
        ImportError, OSError, ValueError: they cannot.
    """
    device = device_name(describe(args.threads, args.device))
    folder = Path(str(args.out).replace("{device}", device))
    report.make_ready(folder)
    return folder


def _run(options: argparse.Namespace, folder: Path, limit: Limit) -> int:
    """Measure, and leave the results and their tables."""
    name = options.command
    try:
        results, status = run(name, SUITES[name], options, limit)
    except WrongResults as wrong:
        _tell(str(wrong))
        return 1
    except OutOfTime as late:
        _tell(f"{name}: left out, {late}")
        return 0
    if results.cases:
        file = folder / f"{name}.json"
        write(file, results.to_json())
        _show(tables.render(results))
        if options.targets:
            status = max(status, _hold(results, lead="\n"))
        _tell(f"{name}: written to {file}")
    else:
        _tell(f"{name}: left out, nothing was measured")
    for failure in results.failures:
        _tell(f"{name}: {failure}")
    return status


def _document(folder: Path) -> int:
    """Write the report of a folder; results are there already, whatever becomes of it."""
    try:
        if report.has_results(folder):
            report.write_folder(folder)
            _tell(f"report in {folder}")
    except (OSError, ValueError) as error:
        _tell(f"no report: {error}")
        return 2
    return 0


def _complaint(options: argparse.Namespace) -> str | None:
    """Why the arguments do not go together."""
    if reason := DEVICES[options.device].why_not():
        return f"--device {options.device}: {reason}"
    if options.device == "cpu":
        return None
    if options.regime != "default":
        return f"--regime {options.regime} is about the CPU's allocator: leave it out"
    if "memory" in options.tables:
        return f"--tables memory: on {options.device} the other tables have the memory"
    return None


def _complaint_of_contenders(options: argparse.Namespace) -> str | None:
    """Why the contenders cannot be measured."""
    name, device = options.command, options.device
    here = SUITES[name].contenders(device)
    for contender in options.contenders or ():
        if contender not in here:
            elsewhere = any(contender in SUITES[name].contenders(other) for other in DEVICES)
            known = f"{contender} is not measured on {device}"
            return known if elsewhere else f"{name} has no {contender}, but {', '.join(here)}"
    return None


def _show_file(args: argparse.Namespace) -> int:
    results = report.read(args.file)
    _show(tables.details(results) if args.details else tables.render(results))
    return 0


def _hold_file(args: argparse.Namespace) -> int:
    return _hold(report.read(args.file), args.every)


def _hold(results: Results, every: bool = False, lead: str = "") -> int:
    """Show what of the targets is met; the exit status."""
    found = targets.evaluate(results, SUITES[results.suite].targets)
    _show(lead + targets.render(found, every))
    for title in (missed := targets.missed(found)):
        _tell(f"{results.suite}: missed: {title}")
    return MISSED if missed else 0


def _compare(args: argparse.Namespace) -> int:
    before, after = report.read(args.before), report.read(args.after)
    found = compare.compare(before, after, is_library, args.threshold)
    _show(compare.render(found))
    return int(found.regressed)


def _tell(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _show(text: str) -> None:
    """For eyes on a terminal, as it is into a pipe."""
    out = Console()
    if out.is_terminal:
        out.print(Markdown(text))
    else:
        print(text, end="")


COMMANDS = {EVERY: _run_all, "show": _show_file, "targets": _hold_file, "compare": _compare}
"""Beside the suites."""
