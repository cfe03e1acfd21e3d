"""How many times faster than each peer, by shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.markdown import number
from benchmarks.plots.select import peers
from benchmarks.plots.style import INK, Palette
from benchmarks.results import Case, Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR = 0.8
"""Share of a bar's place that it fills."""
GAP = 1.2
"""Between shapes, in bars."""


def compared(cases: list[Case]) -> dict[str, str]:
    """Labels of the peers that there is a ratio for, by contender."""
    return {m.contender: m.label for case in cases for m, _ in _with_ratio(case)}


def draw_speedups(axes: Axes, cases: list[Case], palette: Palette) -> None:
    """Bars from 1, to the left where the peer is faster."""
    place, ticks = 0.0, []
    for case in cases:
        bars = _with_ratio(case)
        ticks.append(place + (len(bars) - 1) / 2)
        for m, over in bars:
            axes.barh(place, over - 1, left=1, height=BAR, color=palette.colour(m.contender))
            _write(axes, place, over)
            place += 1
        place += GAP
    axes.set_xscale("log")
    axes.axvline(1, color=INK, linewidth=1.2)
    axes.set_yticks(ticks, [case.problem.shape for case in cases], color=INK)
    axes.set_ylim(place - GAP, -1)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    _room_for_figures(axes, cases)


def height_in_bars(cases: list[Case]) -> float:
    """What the panel needs."""
    return sum(len(_with_ratio(case)) + GAP for case in cases)


def _with_ratio(case: Case) -> list[tuple[Measurement, float]]:
    return [(m, over) for m in peers(case) if (over := case.over_ours(m))]


def _write(axes: Axes, place: float, over: float) -> None:
    left = over < 1
    axes.annotate(
        f"{number(over)} x",
        (over, place),
        xytext=(-3 if left else 3, 0),
        textcoords="offset points",
        va="center",
        ha="right" if left else "left",
        fontsize=7.5,
        fontweight="bold" if left else "normal",
    )


def _room_for_figures(axes: Axes, cases: list[Case]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    ratios = [over for case in cases for _, over in _with_ratio(case)]
    axes.set_xlim(min(0.8, 0.4 * min(ratios)), 2.0 * max(ratios))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
