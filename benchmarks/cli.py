"""The command line: run suites, or read files that a run has left."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from benchmarks import bars, compare, report, tables
from benchmarks.bounds import BARS
from benchmarks.devices import DEVICES
from benchmarks.environment import device_name
from benchmarks.jobs import REGIMES, Limit
from benchmarks.results import Results
from benchmarks.run import WrongResults, console, run
from benchmarks.subjects import SUBJECTS
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
        console.print(f"python -m benchmarks: {error}", markup=False, highlight=False)
        return 2


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of the command line; ``--device`` and ``--quick`` change defaults."""
    early = argparse.ArgumentParser(prog="python -m benchmarks", add_help=False)
    _add_settings(early)
    settings = early.parse_known_args(argv)[0]
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
    return parser.parse_args(_with_command(argv))


def _with_command(argv: list[str]) -> list[str]:
    """All suites if there is no command; ``--compare`` is one, too."""
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
    add("--limit", type=float, help="seconds, after which what is not measured is left out")
    add("--threads", type=int, help="of PyTorch; its own choice if not given")
    add("--out", type=Path, default=OUT, metavar="FOLDER",
        help="for JSON, Markdown and plots; {device} in it becomes the device's name")  # fmt: skip
    add("--bars", action="store_true", help="hold the results to the bars of the design, too")


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
    add("--dtypes", nargs="+", choices=DTYPES, help="of the logits")
    add("--sigmas", nargs="+", type=float, help="of the logits, where it is varied")
    add("--subjects", nargs="+", choices=SUBJECTS, metavar="SUBJECT", help="all, if not given")
    add("--regime", choices=[*REGIMES, "both"], help="of the CPU's memory allocator")
    add("--rounds", type=int, default=500, help="at most, for each case")
    add("--seconds", type=float, help="for each case, unless that is too few rounds")
    _add_common(parser)
    parser.set_defaults(do=_run_one)
    return parser


def _add_readers(commands: Any) -> None:
    def add(name: str, help: str, do: Any, *files: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=help)
        for file in files:
            parser.add_argument(file, type=Path, help="JSON that a suite has written")
        parser.set_defaults(do=do)
        return parser

    shown = add("show", "print the tables of a file", _show_file, "file")
    shown.add_argument("--details", action="store_true", help="all figures of every case")
    held = add("bars", "hold a file to the bars of the design", _show_bars, "file")
    held.add_argument("--every", action="store_true", help="every case, not the worst")
    slower = "what became slower; exit status 1 if we did"
    both = add("compare", slower, _compare, "before", "after")
    both.add_argument("--threshold", type=float, default=0.05, help="beyond the noise")


def _run_all(args: argparse.Namespace) -> int:
    limit, failed = Limit(args.limit), 0
    for name in args.suites:
        alone = parse([name, *_settings_of(args)])
        options = argparse.Namespace(**vars(alone) | vars(args) | {"command": name})
        # A suite that takes long leaves time to the others.
        failed = max(failed, _run(options, Limit(min(Limit(alone.limit).seconds, limit.left()))))
    return failed


def _settings_of(args: argparse.Namespace) -> list[str]:
    return ["--device", args.device, *(["--quick"] if args.quick else [])]


def _run_one(args: argparse.Namespace) -> int:
    return _run(args, Limit(args.limit))


def _run(options: argparse.Namespace, limit: Limit) -> int:
    problem = _complaint(options)
    if problem:
        raise ValueError(problem)
    del options.do
    try:
        results = run(options.command, SUITES[options.command], options, limit)
    except WrongResults as wrong:
        console.print(str(wrong), markup=False)
        return 1
    folder = Path(str(options.out).replace("{device}", device_name(results.environment)))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{results.suite}.json").write_text(results.to_json(), encoding="utf-8")
    report.write_folder(folder)
    _show(tables.render(results))
    if options.bars:
        _show(f"\n{bars.render(results, BARS)}")
    console.print(f"written to {folder}", markup=False)
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


def _show_file(args: argparse.Namespace) -> int:
    results = Results.from_file(args.file)
    _show(tables.details(results) if args.details else tables.render(results))
    return 0


def _show_bars(args: argparse.Namespace) -> int:
    _show(bars.render(Results.from_file(args.file), BARS, args.every))
    return 0


def _compare(args: argparse.Namespace) -> int:
    before, after = Results.from_file(args.before), Results.from_file(args.after)
    found = compare.compare(before, after, args.threshold, ours=_is_ours)
    _show(compare.render(found))
    return int(found.regressed)


def _is_ours(subject: str) -> bool:
    return subject in SUBJECTS and SUBJECTS[subject].backend is not None


def _show(text: str) -> None:
    """For eyes on a terminal, as it is into a pipe."""
    out = Console()
    if out.is_terminal:
        out.print(Markdown(text))
    else:
        print(text, end="")


def _shape(sizes: str) -> Any:
    count = sizes.count("x") + 1

    def shape(text: str) -> tuple[int, ...]:
        found = tuple(map(int, text.split("x")))
        if len(found) != count:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form {sizes}")
        return found

    return shape


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in the help, but not those that say nothing."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default in (None, False, argparse.SUPPRESS)
        return action.help if nothing else super()._get_help_string(action)
