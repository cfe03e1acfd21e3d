"""Writes documents of results, and finds those that are out of date."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks import tables, targets
from benchmarks.files import make_writable, write
from benchmarks.plots import draw, planned, source
from benchmarks.plots.captions import machine, provenance
from benchmarks.plots.style import look
from benchmarks.report.overview import section
from benchmarks.results import Results
from benchmarks.suites import SUITES

ROOT = Path(__file__).parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"
ORDER = ("rows", "scaling", "linear", "layouts", "softmax", "train", "overhead")
"""Of the suites in a document; others follow by name."""
ORIGIN = "Written by `python -m benchmarks.report`"
"""In every document; a README without it is somebody's own."""
SOURCE = re.compile(rb"tEXtSource\0[0-9a-f]{64}")
"""What a plot's file says of its results, before its pixels; a PNG without it is somebody's own."""
BEFORE_PIXELS = 4096


def make_ready(folder: Path) -> None:
    """Make the folder, and see that documents can be written to it.

    Raises:
        ImportError: matplotlib is not there.
        OSError: nothing can be written there.
        ValueError: the folder has a README of somebody's own.
    """
    with look():
        make_writable(folder)
    _document_of(folder)


def write_folder(folder: Path) -> list[Path]:
    """Write the README of a folder of results, then its plots, without those of earlier results.

    Raises:
        ImportError: matplotlib is not there; the README is written all the same.
        ValueError: the folder has no results, unreadable ones, or a README of somebody's own.
    """
    runs = results_in(folder)
    document = _document_of(folder)
    write(document, folder_document(runs))
    for leftover in _plots_there(folder) - _plots_of(runs).keys():
        (folder / leftover).unlink()
    return [document, *(path for run in runs for path in draw(run, folder))]


def write_section(readme: Path = README, results: Path = RESULTS) -> None:
    """Write the section on performance.

    Raises:
        ValueError: the README has no place for it.
    """
    text = readme.read_text(encoding="utf-8")
    write(readme, with_section(text, readme, results))


def stale(readme: Path = README, results: Path = RESULTS) -> list[str]:
    """What is not as the committed results have it, in words.

    Raises:
        ValueError: the README has no place for the section.
    """
    text = readme.read_text(encoding="utf-8")
    found = [] if with_section(text, readme, results) == text else [f"{readme}: performance"]
    return found + [what for folder in folders_in(results) for what in _stale_in(folder)]


def folders_in(results: Path) -> list[Path]:
    """A folder for each device; none before there are results."""
    return sorted({path.parent for name in SUITES for path in results.glob(f"*/{name}.json")})


def has_results(folder: Path) -> bool:
    """Whether there is something to report."""
    return any((folder / f"{name}.json").exists() for name in SUITES)


def results_in(folder: Path) -> list[Results]:
    """The runs of a device, in the order of the documents.

    Raises:
        ValueError: there is none, or one has another schema version.
    """
    names = [*ORDER, *sorted(SUITES.keys() - set(ORDER))]
    there = [path for path in (folder / f"{name}.json" for name in names) if path.exists()]
    if not there:
        raise ValueError(f"{folder} has no results")
    return list(map(read, there))


def read(path: Path) -> Results:
    """The results in a file.

    Raises:
        ValueError: it has another schema version, or is something else.
    """
    results = Results.from_file(path)
    if results.suite not in SUITES:
        raise ValueError(f"{path}: not a file of results: there is no suite {results.suite!r}")
    return results


def folder_document(runs: list[Results]) -> str:
    """The README of a folder: plots, then tables and targets, of every suite."""

    parts = [
        f"# {machine(runs[0])}",
        f"{ORIGIN} from the JSON files beside it.",
        "\n".join(f"- {run.suite}: {provenance(run)}" for run in runs),
    ]
    parts += [f"![{plot.title}]({plot.name})" for run in runs for plot in planned(run)]
    parts += [part for run in runs for part in _of_suite(run)]
    return "\n\n".join(parts) + "\n"


def _of_suite(run: Results) -> list[str]:
    parts = [_demoted(tables.render(run)).rstrip()]
    if found := targets.evaluate(run, SUITES[run.suite].targets):
        parts += ["### Targets", targets.render(found).rstrip()]
    return parts


def with_section(text: str, readme: Path, results: Path) -> str:
    """The text of a README with its section made anew.

    Raises:
        ValueError: it has no place for the section.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} must have the lines {BEGIN} and {END}, in this order")
    runs = {folder: results_in(folder) for folder in folders_in(results)}
    return f"{before}{BEGIN}\n{section(runs, readme.parent)}\n{END}{after}"


def _stale_in(folder: Path) -> Iterator[str]:
    runs = results_in(folder)
    document = folder / "README.md"
    if not document.exists() or document.read_text(encoding="utf-8") != folder_document(runs):
        yield str(document)
    plots = _plots_of(runs)
    for name, origin in plots.items():
        path = folder / name
        if not path.exists():
            yield f"{path}: missing"
        elif origin.encode() not in path.read_bytes():
            yield f"{path}: drawn from other results"
    for name in sorted(_plots_there(folder) - plots.keys()):
        yield f"{folder / name}: not a plot of these results"


def _plots_of(runs: list[Results]) -> dict[str, str]:
    """Names of files, and what each says of the results it was drawn from."""
    return {plot.name: source(run) for run in runs for plot in planned(run)}


def _plots_there(folder: Path) -> set[str]:
    """Those that were drawn here; other pictures are none of ours."""
    return {path.name for path in folder.glob("*.png") if SOURCE.search(_start(path))}


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(BEFORE_PIXELS)


def _document_of(folder: Path) -> Path:
    """Of the folder; nothing that somebody else wrote."""
    path = folder / "README.md"
    if path.exists() and ORIGIN not in path.read_text(encoding="utf-8"):
        raise ValueError(f"{path} is not a report, and would be written over: take another folder")
    return path


def _demoted(markdown: str) -> str:
    """With each heading one level lower."""
    return re.sub(r"^(#+ )", r"#\1", markdown, flags=re.MULTILINE)
