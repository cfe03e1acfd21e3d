"""Plots of a run, made from its results alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

from benchmarks.plots import bar_plots, line_plots
from benchmarks.plots.plan import Plot
from benchmarks.plots.select import typical, with_memory
from benchmarks.plots.style import look, save
from benchmarks.results import Results

__all__ = ["Plot", "draw", "planned", "source"]


def draw(results: Results, folder: Path) -> list[Path]:
    """Write every plot that the run has cases for, as ``<suite>-<what>.png``.

    Raises:
        ImportError: matplotlib is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    origin, paths = source(results), []
    with look():
        for plot in planned(results):
            paths.append(folder / plot.name)
            save(plot.paint(), paths[-1], origin)
    return paths


def source(results: Results) -> str:
    """What the file of a plot says of the results that it was drawn from."""
    return hashlib.sha256(results.to_json().encode()).hexdigest()


def planned(results: Results) -> list[Plot]:
    """Plots of every table that has cases; needs no matplotlib."""
    if results.suite == "rows":
        return _rows(results)
    if results.suite == "scaling":
        return line_plots.scaling(results, "classes") + line_plots.scaling(results, "rows")
    tables = dict.fromkeys(case.table for case in results.cases if case.problem.rows)
    return [plot for table in tables for plot in _table(results, table)]


def _rows(results: Results) -> list[Plot]:
    memory = line_plots.memory(results) or bar_plots.sizes(results, "memory", with_memory(results))
    return line_plots.throughput(results) + bar_plots.speedup(results) + memory


def _table(results: Results, table: str) -> list[Plot]:
    cases = typical(results.of_table(table))
    return bar_plots.times(results, table, cases) + bar_plots.sizes(results, table, cases)
