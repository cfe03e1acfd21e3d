"""Plots of a run, made from its results alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

from benchmarks.plots.figures import planned
from benchmarks.plots.plan import Plot
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
