"""Writes documents of results, and finds those that are out of date."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks import bars, tables
from benchmarks.bounds import BARS
from benchmarks.plots import draw, planned, source
from benchmarks.plots.captions import machine, provenance
from benchmarks.report.overview import section
from benchmarks.results import Results

ROOT = Path(__file__).parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"
ORDER = ("rows", "scaling", "linear", "layouts", "softmax", "train", "overhead")
"""Of the suites in a document; others follow by name."""


def write_folder(folder: Path) -> list[Path]:
    """Write the README of a folder of results, then its plots, without those of earlier results.

    Raises:
        ImportError: matplotlib is not there; the README is written all the same.
    """
    runs = results_in(folder)
    document = folder / "README.md"
    document.write_text(folder_document(runs), encoding="utf-8")
    for leftover in _plots_there(folder) - _plots_of(runs).keys():
        (folder / leftover).unlink()
    return [document, *(path for run in runs for path in draw(run, folder))]


def write_section(readme: Path = README, results: Path = RESULTS) -> None:
    """Write the section on performance.

    Raises:
        ValueError: the README has no place for it.
    """
    text = readme.read_text(encoding="utf-8")
    readme.write_text(with_section(text, readme, results), encoding="utf-8")


def stale(readme: Path = README, results: Path = RESULTS) -> list[str]:
    """What is not as the committed results have it, in words.

    Raises:
        ValueError: the README has no place for the section.
    """
    text = readme.read_text(encoding="utf-8")
    found = [] if with_section(text, readme, results) == text else [f"{readme}: performance"]
    return found + [what for folder in folders_in(results) for what in _stale_in(folder)]


def folders_in(results: Path) -> list[Path]:
    """A folder for each device."""
    return sorted(path for path in results.iterdir() if path.is_dir() and any(path.glob("*.json")))


def results_in(folder: Path) -> list[Results]:
    """The runs of a device, in the order of the documents.

    Raises:
        ValueError: there is none, or one has another schema version.
    """
    runs = [Results.from_file(path) for path in sorted(folder.glob("*.json"))]
    if not runs:
        raise ValueError(f"{folder} has no results")
    return sorted(runs, key=lambda run: ORDER.index(run.suite) if run.suite in ORDER else 99)


def folder_document(runs: list[Results]) -> str:
    """The README of a folder: plots, then tables and bars, of every suite."""

    parts = [
        f"# {machine(runs[0])}",
        "Written by `python -m benchmarks.report` from the JSON files beside it.",
        "\n".join(f"- {run.suite}: {provenance(run)}" for run in runs),
    ]
    parts += [f"![{plot.title}]({plot.name})" for run in runs for plot in planned(run)]
    parts += [part for run in runs for part in _of_suite(run)]
    return "\n\n".join(parts) + "\n"


def _of_suite(run: Results) -> list[str]:
    parts = [_demoted(tables.render(run)).rstrip()]
    if any(bar for bar in BARS if (bar.suite, bar.device) == (run.suite, run.device)):
        parts += ["### What it has to reach", bars.render(run, BARS).rstrip()]
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
    return {path.name for path in folder.glob("*.png")}


def _demoted(markdown: str) -> str:
    """With each heading one level lower."""
    return re.sub(r"^(#+ )", r"#\1", markdown, flags=re.MULTILINE)
