"""Plots over the number of classes or of rows: throughput, memory, scaling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING

from benchmarks.plots.captions import caption, left_out
from benchmarks.plots.curves import Spread, Value, curves, draw_curves, label_curves
from benchmarks.plots.plan import STEP, WIDTH, Plot
from benchmarks.plots.select import by_dtype, in_view, is_small, typical, whole_steps, with_memory
from benchmarks.plots.style import Palette, new_figure
from benchmarks.results import Case, Measurement, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = 10
"""In a panel."""
HEIGHT = 3.3
"""Of a row of panels, in inches; the axes take most of it."""
KIB = 2**10
BANDS = "Medians; bands: 10th to 90th percentile."
HOLLOW = "Hollow points: others disturbed the case."
CLASSES = "classes"


@dataclass(frozen=True)
class Quantity:
    """What is drawn upwards."""

    unit: str
    of: Value
    scale: str = "log"
    is_time: bool = True


def throughput(results: Results) -> list[Plot]:
    """GB/s and share of the roofline over the number of classes."""
    cases = [c for c in _steps(results, "main") if not is_small(c.problem)]
    quantities = [
        Quantity("GB/s (one read and one write)", _gigabytes),
        Quantity("% of the roofline's speed", _sharp(_percent), "linear"),
    ]
    return _plots(results, "throughput", f"Throughput: {STEP}", cases, quantities, CLASSES)


def memory(results: Results) -> list[Plot]:
    """Peak extra memory over the number of classes."""
    quantities = [
        Quantity("MiB", _sharp(Case.mebibytes), "symlog", is_time=False),
        Quantity("multiple of the logits' size", _sharp(_over_logits), "linear", is_time=False),
    ]
    cases = with_memory(results)
    return _plots(results, "memory", f"Peak extra memory: {STEP}", cases, quantities, CLASSES)


def scaling(results: Results, along: str) -> list[Plot]:
    """Time per KiB of logits over the number of classes or rows."""
    title = f"Time per KiB of logits over {along}: {STEP}; flat is good"
    quantities = [Quantity("ns per KiB of logits", _nanoseconds_per_kib)]
    return _plots(results, along, title, _steps(results, along), quantities, along)


def _plots(
    results: Results,
    what: str,
    title: str,
    cases: list[Case],
    quantities: list[Quantity],
    along: str,
) -> list[Plot]:
    """A plot, if there is more than one point to a line."""
    if len({getattr(case.problem, along) for case in cases}) < 2:
        return []
    paint = partial(_figure, results, title, cases, quantities, along)
    return [Plot(f"{results.suite}-{what}.png", title, paint)]


def _figure(
    results: Results, title: str, cases: list[Case], quantities: list[Quantity], along: str
) -> Figure:
    """A row of panels for each quantity, a column for each dtype."""
    cases, unseen = in_view(cases, LINES)
    palette, groups = Palette(results.cases), by_dtype(cases)
    remark = BANDS if any(quantity.is_time for quantity in quantities) else ""
    hollow = HOLLOW if any(case.disturbed for case in cases) else ""
    grid = len(quantities), len(groups)
    size = WIDTH if len(groups) > 1 else 0.75 * WIDTH, 1.3 + HEIGHT * len(quantities)
    under = caption(results, cases, remark, hollow, left_out(unseen))
    figure, axes = new_figure(title, under, grid, size)
    for row, quantity in zip(axes, quantities, strict=True):
        for panel, (dtype, group) in zip(row, groups.items(), strict=True):
            panel.sharey(row[0])
            lines = curves(group, attrgetter(along), quantity.of)
            draw_curves(panel, lines, palette, quantity.scale)
            if row is axes[0]:
                panel.set_title(dtype)
            if row is axes[-1]:
                panel.set_xlabel(along)
        row[0].set_ylabel(quantity.unit)
        if quantity.scale != "log":
            row[0].set_ylim(bottom=0)  # not before the last panel: it fixes the upper end, too
        label_curves(row[-1], lines, palette, 0.85 * HEIGHT)
    return figure


def _steps(results: Results, table: str) -> list[Case]:
    return whole_steps(typical(results.of_table(table)))


def _gigabytes(case: Case, measurement: Measurement) -> Spread | None:
    middle, spread = case.gigabytes_per_second(measurement), measurement.milliseconds
    if middle is None or spread is None:
        return None
    return middle * spread.median / spread.p90, middle, middle * spread.median / spread.p10


def _percent(case: Case, measurement: Measurement) -> float | None:
    share = case.share_of_roofline(measurement)
    return share and 100 * share


def _over_logits(case: Case, measurement: Measurement) -> float | None:
    return measurement.ratios.get("logits")


def _nanoseconds_per_kib(case: Case, measurement: Measurement) -> Spread | None:
    spread, kib = measurement.milliseconds, case.problem.logits_bytes / KIB
    if spread is None:
        return None
    return 1e6 * spread.p10 / kib, 1e6 * spread.median / kib, 1e6 * spread.p90 / kib


def _sharp(figure: Callable[[Case, Measurement], float | None]) -> Value:
    """A figure without a spread."""

    def value(case: Case, measurement: Measurement) -> Spread | None:
        found = figure(case, measurement)
        return None if found is None else (found, found, found)

    return value
