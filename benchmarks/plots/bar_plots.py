"""Plots of bars: speed-ups over peers, and the time and memory of any table."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from benchmarks.plots.bars import Panel, draw_bars, memory_panel, time_panel
from benchmarks.plots.captions import caption, left_out
from benchmarks.plots.plan import STEP, WIDTH, Plot, heading
from benchmarks.plots.select import by_dtype, in_view, only, time_unit, typical, whole_steps
from benchmarks.plots.speedups import compared, draw_speedups, height_in_bars
from benchmarks.plots.style import Palette, new_figure
from benchmarks.results import Case, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = 8
"""In a figure."""
COLUMNS = 2
PEERS = 8
"""That a plot of speed-ups compares with."""
TIMES = "Medians; lines: 10th to 90th percentile; (n x): over anl_kernels."
CUT = "Hatched bars are cut."
SIZES = "(n x): over the logits' size."
FASTER = "To the left of 1 the peer is faster. Medians over interleaved rounds."


def speedup(results: Results) -> list[Plot]:
    """Our time against each peer's, by shape."""
    cases = whole_steps(typical(results.of_table("main")))
    if not compared(cases):
        return []
    title = f"Speed-up over peers: {STEP}"
    paint = partial(_speedup_figure, results, cases, title)
    return [Plot(f"{results.suite}-speedup.png", title, paint)]


def times(results: Results, table: str, cases: list[Case]) -> list[Plot]:
    """The time of each contender in each case."""
    factor, unit = time_unit(cases)
    panels = [(case, time_panel(case, factor, unit)) for case in cases]
    return _pages(results, table, f"{heading(results, table)}: time", panels, unit, TIMES)


def sizes(results: Results, table: str, cases: list[Case]) -> list[Plot]:
    """The peak extra memory of each contender in each case."""
    panels = [(case, memory_panel(case)) for case in cases]
    what = table if "memory" in table else f"{table}-memory"
    title = f"{heading(results, table)}: peak extra memory"
    return _pages(results, what, title, panels, "MiB", SIZES)


def _pages(
    results: Results,
    what: str,
    title: str,
    panels: list[tuple[Case, Panel]],
    unit: str,
    remark: str,
) -> list[Plot]:
    """Plots of so many panels as can be read."""
    panels = [(case, panel) for case, panel in panels if panel.bars]
    plots = []
    for first in range(0, len(panels), PANELS):
        number = f"-{first // PANELS + 1}" if len(panels) > PANELS else ""
        page = panels[first : first + PANELS]
        paint = partial(_bar_figure, results, title, page, unit, remark)
        plots.append(Plot(f"{results.suite}-{what}{number}.png", title, paint))
    return plots


def _bar_figure(
    results: Results, title: str, panels: list[tuple[Case, Panel]], unit: str, remark: str
) -> Figure:
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    bars = max(len(panel.bars) for _, panel in panels)
    size = WIDTH if columns > 1 else 0.7 * WIDTH, 1.1 + rows * (0.8 + 0.24 * bars)
    cut = CUT if any(panel.has_cut_bars for _, panel in panels) else ""
    under = caption(results, [case for case, _ in panels], remark, cut)
    figure, grid = new_figure(title, under, (rows, columns), size)
    palette = Palette(results.cases)
    places = [axes for row in grid for axes in row]
    for axes, (_, panel) in zip(places, panels, strict=False):
        draw_bars(axes, panel, palette, unit)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    return figure


def _speedup_figure(results: Results, cases: list[Case], title: str) -> Figure:
    cases, unseen = in_view([only(c, compared([c])) for c in cases], PEERS)
    groups = by_dtype(cases)
    height = 1.9 + 0.155 * max(map(height_in_bars, groups.values()))
    size = WIDTH if len(groups) > 1 else 0.7 * WIDTH, height
    under = caption(results, cases, FASTER, left_out(unseen))
    figure, (axes,) = new_figure(title, under, (1, len(groups)), size)
    palette = Palette(results.cases)
    for panel, (dtype, group) in zip(axes, groups.items(), strict=True):
        draw_speedups(panel, group, palette)
        panel.set_title(dtype)
        panel.set_xlabel("peer's time over that of anl_kernels")
    _legend(figure, palette, compared(cases))
    return figure


def _legend(figure: Figure, palette: Palette, labels: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=palette.colour(key), label=label) for key, label in labels.items()]
    figure.legend(handles=handles, loc="outside right upper", fontsize=9)
