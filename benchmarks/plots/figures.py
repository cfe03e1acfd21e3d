"""Which plots a run gives."""

from __future__ import annotations

from benchmarks.plots import bar_plots, line_plots
from benchmarks.plots.plan import Plot
from benchmarks.plots.select import typical, with_memory
from benchmarks.results import Results


def planned(results: Results) -> list[Plot]:
    """Plots of every table that has cases; needs no matplotlib."""
    if results.suite == "rows":
        return _rows(results)
    if results.suite == "scaling":
        return line_plots.scaling(results, "classes") + line_plots.scaling(results, "rows")
    tables = dict.fromkeys(case.table for case in results.cases)
    return [plot for table in tables for plot in _table(results, table)]


def _rows(results: Results) -> list[Plot]:
    memory = line_plots.memory(results) or bar_plots.sizes(results, "memory", with_memory(results))
    return line_plots.throughput(results) + bar_plots.speedup(results) + memory


def _table(results: Results, table: str) -> list[Plot]:
    cases = typical(results.of_table(table))
    return bar_plots.times(results, table, cases) + bar_plots.sizes(results, table, cases)
