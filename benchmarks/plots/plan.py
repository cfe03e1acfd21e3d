"""What a plot is before it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.results import Results
from benchmarks.suites import SUITES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 12.0
"""Inches."""
STEP = "loss and gradient of ANL-CE"


@dataclass(frozen=True)
class Plot:
    """A plot that can be drawn."""

    name: str
    """Of its file."""
    title: str
    """What it shows, also for those who cannot see it."""
    paint: Callable[[], Figure]


def heading(results: Results, table: str) -> str:
    """What a table of a suite is about; where it is about memory, what the suite is about."""
    suite = SUITES.get(results.suite)
    if suite is None:
        return f"{results.suite}, {table}"
    if "memory" in table:
        return suite.title[0].upper() + suite.title[1:]
    return suite.title_of(table)
