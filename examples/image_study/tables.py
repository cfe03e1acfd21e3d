"""The papers' tables: losses by noise rates, mean and deviation over seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table

from .methods import METHODS
from .records import Setting, Study, Summary

KINDS = ("symmetric", "asymmetric", "pair", "instance")

Measure = Callable[[str, Setting], Summary | None]


@dataclass(frozen=True)
class Grid:
    """Figures by loss and by noise rate."""

    headings: list[str]
    rows: dict[str, list[str]]
    """For each loss, as text."""
    highest: set[tuple[str, int]]
    """Loss and column of the highest mean of each column."""

    def marked(self, name: str, before: str, after: str) -> list[str]:
        """A loss's row with the highest figures between two marks."""
        return [
            f"{before}{cell}{after}" if (name, column) in self.highest else cell
            for column, cell in enumerate(self.rows[name])
        ]


def methods(study: Study) -> list[str]:
    """Those that have runs, in the order of the table."""
    found = {run.method for run in study.runs}
    return [name for name in METHODS if name in found]


def grid(study: Study, kind: str, measure: Measure) -> Grid:
    """What is measured under a kind of noise, without rates where there is nothing to measure."""
    names = methods(study)
    columns = {s: {name: measure(name, s) for name in names} for s in study.settings(kind)}
    columns = {setting: column for setting, column in columns.items() if any(column.values())}
    highest = set()
    for i, column in enumerate(columns.values()):
        means = {name: round(summary.mean, 2) for name, summary in column.items() if summary}
        highest |= {(name, i) for name, value in means.items() if value == max(means.values())}
    return Grid(
        headings=[heading(setting) for setting in columns],
        rows={
            name: [text(column[name]) for column in columns.values()]
            for name in names
            if any(column[name] for column in columns.values())
        },
        highest=highest,
    )


def heading(setting: Setting) -> str:
    """``symmetric 20%``."""
    return f"{setting.noise} {setting.rate:.0%}" if setting.rate else "clean labels"


def text(summary: Summary | None) -> str:
    """``12.34 ± 0.56``."""
    if summary is None:
        return ""
    deviation = "" if summary.deviation is None else f" ± {summary.deviation:.2f}"
    return f"{summary.mean:.2f}{deviation}"


def markdown(study: Study, kind: str, measure: Measure, *, bold: bool = True) -> str:
    """A table whose highest figures are bold."""
    figures = grid(study, kind, measure)
    mark = "**" if bold else ""
    rows = [
        ["loss", *figures.headings],
        ["---", *["---:"] * len(figures.headings)],
        *([name, *figures.marked(name, mark, mark)] for name in figures.rows),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def console(study: Study, kind: str, measure: Measure, title: str) -> Table:
    """The same for a terminal."""
    figures = grid(study, kind, measure)
    table = Table(title=title)
    table.add_column("loss", no_wrap=True)
    for name in figures.headings:
        table.add_column(name, justify="right")
    for name in figures.rows:
        table.add_row(name, *figures.marked(name, "[bold]", "[/]"))
    return table
