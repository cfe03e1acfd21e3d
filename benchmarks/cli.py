"""The command line: run suites, or read files that a run has left."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from benchmarks import bars, compare, report, tables
from benchmarks.bounds import BARS
from benchmarks.devices import DEVICES
from benchmarks.environment import describe, device_name
from benchmarks.files import write
from benchmarks.jobs import REGIMES, Limit, OutOfTime
from benchmarks.run import INTERRUPTED, WrongResults, console, run
from benchmarks.subjects import SUBJECTS, is_library
from benchmarks.suite import Suite
from benchmarks.suites import SUITES

DTYPES = ("float32", "bfloat16", "float16", "float64")
OUT = Path("out/benchmarks/{device}")
EVERY = "all"


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status."""
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        return args.do(args)
    except (ImportError, OSError, ValueError) as error:
        _tell(f"python -m benchmarks: {error}")
        return 2
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of the command line; ``--device`` and ``--quick`` change defaults."""
    early = argparse.ArgumentParser(prog="python -m benchmarks", add_help=False)
    _add_settings(early)
    settings, rest = early.parse_known_args(argv)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="Without a command, all suites run: python -m benchmarks --quick",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    _add_all(commands)
    for name, suite in SUITES.items():
        runner = _add_suite(commands, name, suite)
        runner.set_defaults(**suite.defaults(settings.device, settings.quick))
    _add_readers(commands)
    first = rest[0] if rest and rest[0] in commands.choices else None
    return parser.parse_args(_with_command(argv, first))


def _with_command(argv: list[str], first: str | None) -> list[str]:
    """The command, which may follow settings, in front.

    All suites if there is none; ``--compare`` is one, too.
    """
    if first:
        place = argv.index(first)
        return [first, *argv[:place], *argv[place + 1 :]]
    if argv[:1] == ["--compare"]:
        return ["compare", *argv[1:]]
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        return [EVERY, *argv]
    return argv


def _add_settings(parser: argparse.ArgumentParser, **choices: Any) -> None:
    """Those that other defaults depend on."""
    parser.add_argument("--device", default="cpu", help="with defaults of its own", **choices)
    parser.add_argument("--quick", action="store_true", help="fewer cases, other defaults")


def _add_common(parser: argparse.ArgumentParser) -> None:
    _add_settings(parser, choices=DEVICES)
    add = parser.add_argument
    add("--limit", type=_positive, help="seconds, after which what is not measured is left out")
    add("--threads", type=_count, help="of PyTorch; its own choice if not given")
    add("--out", type=Path, default=OUT, metavar="FOLDER",
        help="for JSON, Markdown and plots; {device} in it becomes the device's name")  # fmt: skip
    add("--bars", action="store_true", help="hold the results to the bars of the design, too; "
        "the exit status does not depend on it")  # fmt: skip


def _add_all(commands: Any) -> None:
    parser = commands.add_parser(
        EVERY, help="all suites, one after the other", formatter_class=_Defaults
    )
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    _add_common(parser)
    parser.set_defaults(do=_run_all)


def _add_suite(commands: Any, name: str, suite: Suite) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=suite.title, formatter_class=_Defaults)
    add, sizes = parser.add_argument, suite.sizes
    add("--tables", nargs="+", choices=suite.tables, help="what to measure")
    add("--shapes", nargs="+", type=_shape(sizes), metavar=sizes, help="of most tables")
    add("--typical-shape", type=_shape(sizes), metavar=sizes, help="of tables of one shape")
    add("--memory-shapes", nargs="+", type=_shape(sizes), metavar=sizes, help="of memory tables")
    add("--dtypes", nargs="+", choices=DTYPES,
        help="of the logits; in memory tables of rows and of layouts the first alone")  # fmt: skip
    add("--sigmas", nargs="+", type=_positive, help="of the logits, where it is varied")
    add("--subjects", nargs="+", choices=SUBJECTS, metavar="SUBJECT",
        help="beside the roof and the library; all, if not given")  # fmt: skip
    add("--regime", choices=[*REGIMES, "both"], help="of the CPU's memory allocator")
    add("--rounds", type=_count, default=500, help="at most, for each case")
    add("--seconds", type=_positive, help="for each case, unless that is too few rounds")
    _add_common(parser)
    parser.set_defaults(do=_run_one)
    return parser


def _add_readers(commands: Any) -> None:
    def add(name: str, help: str, do: Any, *files: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=help, description=help)
        for file in files:
            parser.add_argument(file, type=Path, help="JSON that a suite has written")
        parser.set_defaults(do=do)
        return parser

    shown = add("show", "print the tables of a file", _show_file, "file")
    shown.add_argument("--details", action="store_true", help="all figures of every case")
    whether = "hold a file to the bars of the design; exit status 0 in any case"
    held = add("bars", whether, _show_bars, "file")
    held.add_argument("--every", action="store_true", help="every case, not the worst")
    slower = "what became slower; exit status 1 if we did"
    both = add("compare", slower, _compare, "before", "after")
    both.add_argument("--threshold", type=float, default=0.05, help="beyond the noise")


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
    if problem := _complaint(options) or _complaint_of_subjects(options):
        raise ValueError(problem)
    if not SUITES[options.command].specs(options):
        raise ValueError(f"{', '.join(options.tables)}: no table of these has the subjects")


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
    del options.do
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
        if options.bars:
            _show(f"\n{bars.render(results, BARS)}")
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


def _complaint_of_subjects(options: argparse.Namespace) -> str | None:
    """Why the subjects cannot be measured."""
    name, device = options.command, options.device
    here = SUITES[name].subjects(device)
    for subject in options.subjects or ():
        if subject not in here:
            elsewhere = any(subject in SUITES[name].subjects(other) for other in DEVICES)
            known = f"{subject} is not measured on {device}"
            return known if elsewhere else f"{name} has no {subject}, but {', '.join(here)}"
    return None


def _show_file(args: argparse.Namespace) -> int:
    results = report.read(args.file)
    _show(tables.details(results) if args.details else tables.render(results))
    return 0


def _show_bars(args: argparse.Namespace) -> int:
    _show(bars.render(report.read(args.file), BARS, args.every))
    return 0


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


def _shape(sizes: str) -> Callable[[str], tuple[int, ...]]:
    """The type of shapes of a form."""
    letters = sizes.split("x")
    classes = next(place for place, letter in enumerate(letters) if letter in "KC")

    def shape(text: str) -> tuple[int, ...]:
        found = text.split("x")
        if len(found) != len(letters) or not all(part.isdecimal() for part in found):
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {sizes}")
        if int(found[classes]) < 2:
            raise argparse.ArgumentTypeError(f"{text!r} has fewer than 2 classes")
        return tuple(map(_count, found))

    return shape


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


class _Defaults(argparse.HelpFormatter):
    """Defaults in the help, as one types them, but not those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default in (None, False, argparse.SUPPRESS)
        return action.help if nothing else f"{action.help} (default: {_typed(action.default)})"


def _typed(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return " ".join(map(_typed, value)) if isinstance(value, list) else str(value)
