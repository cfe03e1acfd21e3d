"""``python -m benchmarks.report``: writes the documents of the committed results.

The plots and a README in each folder of results, and the section on performance in the top-level
README. ``--check`` writes nothing and says what is out of date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.report.documents import (
    README,
    RESULTS,
    folders_in,
    stale,
    write_folder,
    write_section,
)


def main(argv: list[str] | None = None) -> int:
    """Write or check; the exit status."""
    args = _parse(argv)
    try:
        if args.check:
            return _check(args.readme, args.results)
        for folder in args.folders or folders_in(args.results):
            write_folder(folder)
        write_section(args.readme, args.results)
    except (ImportError, OSError, ValueError) as error:
        print(f"python -m benchmarks.report: {error}", file=sys.stderr)
        return 2
    return 0


def _check(readme: Path, results: Path) -> int:
    found = stale(readme, results)
    for what in found:
        print(f"out of date: {what}")
    if found:
        print("python -m benchmarks.report makes them anew")
    return int(bool(found))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    add = parser.add_argument
    add("folders", nargs="*", type=Path, metavar="FOLDER",
        help="write the documents of these only; the section has those of all results")  # fmt: skip
    add("--check", action="store_true", help="exit status 1 if something is out of date")
    add("--readme", type=Path, default=README, help="with the section on performance")
    add("--results", type=Path, default=RESULTS, help="folder that has one for each device")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
