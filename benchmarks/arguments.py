"""The arguments of the command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS
from benchmarks.devices import DEVICES
from benchmarks.jobs import REGIMES
from benchmarks.suite import Suite
from benchmarks.suites import SUITES

DTYPES = ("float32", "bfloat16", "float16", "float64")
OUT = Path("out/benchmarks/{device}")
EVERY = "all"
MISSED = 3
"""The exit status where a target is missed."""


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
    """The command, which may follow settings, in front; all suites if there is none."""
    if first:
        place = argv.index(first)
        return [first, *argv[:place], *argv[place + 1 :]]
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
    add("--targets", action="store_true", help="hold the results to the targets of the suite, too; "
        f"exit status {MISSED} if one is missed")  # fmt: skip


def _add_all(commands: Any) -> None:
    parser = commands.add_parser(
        EVERY, help="all suites, one after the other", formatter_class=_Defaults
    )
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES))
    _add_common(parser)


def _add_suite(commands: Any, name: str, suite: Suite) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=suite.title, formatter_class=_Defaults)
    add, sizes = parser.add_argument, suite.sizes
    add("--tables", nargs="+", choices=suite.tables, help="what to measure")
    add("--shapes", nargs="+", type=_shape(sizes), metavar=sizes, help="of most tables")
    add("--typical-shape", type=_shape(sizes), metavar=sizes, help="of tables of one shape")
    add("--memory-shapes", nargs="+", type=_shape(sizes), metavar=sizes, help="of memory tables")
    add("--chunk-shapes", nargs="+", type=_shape(sizes), metavar=sizes, help="by size of a chunk")
    add("--dtypes", nargs="+", choices=DTYPES,
        help="of the logits; in memory tables of rows and of layouts the first alone")  # fmt: skip
    add("--sigmas", nargs="+", type=_positive, help="of the logits, where it is varied")
    add("--contenders", nargs="+", choices=CONTENDERS, metavar="CONTENDER",
        help="beside the roofline and the library; all, if not given")  # fmt: skip
    add("--regime", choices=[*REGIMES, "both"], help="of the CPU's memory allocator")
    add("--rounds", type=_count, default=500, help="at most, for each case")
    add("--seconds", type=_positive, help="for each case, unless that is too few rounds")
    _add_common(parser)
    return parser


def _add_readers(commands: Any) -> None:
    def add(name: str, help: str, *files: str) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=help, description=help)
        for file in files:
            parser.add_argument(file, type=Path, help="JSON that a suite has written")
        return parser

    shown = add("show", "print the tables of a file", "file")
    shown.add_argument("--details", action="store_true", help="all figures of every case")
    whether = f"hold a file to the targets of its suite; exit status {MISSED} if one is missed"
    held = add("targets", whether, "file")
    held.add_argument("--every", action="store_true", help="every case, not the worst")
    slower = "what became slower; exit status 1 if we did"
    both = add("compare", slower, "before", "after")
    both.add_argument("--threshold", type=float, default=0.05, help="beyond the noise")


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
