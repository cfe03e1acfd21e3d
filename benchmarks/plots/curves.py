"""Lines over the number of classes or of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.plots.style import GRID, INK, Palette
from benchmarks.problems import Problem
from benchmarks.results import Case, Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Spread = tuple[float, float, float]
"""A low value, the middle, a high one."""
Value = Callable[[Case, Measurement], Spread | None]
LINE_HEIGHT = 13.0
"""Of a label, in points."""
Position = Callable[[Problem], int]


@dataclass(frozen=True)
class Curve:
    """One contender's line."""

    contender: str
    label: str
    is_roofline: bool
    is_ours: bool
    points: list[tuple[int, Spread]]
    disturbed: list[int]
    """Which of the points are of cases that others disturbed."""


def curves(cases: list[Case], position: Position, value: Value) -> list[Curve]:
    """A line for each contender that has figures."""
    found: dict[str, Curve] = {}
    for case in _one_for_each_position(cases, position):
        for m in case.measurements:
            spread = None if m.error else value(case, m)
            if spread:
                roofline, ours = m.contender == case.roofline, m.contender == case.ours
                new = Curve(m.contender, m.label, roofline, ours, [], [])
                curve = found.setdefault(m.contender, new)
                if case.disturbed:
                    curve.disturbed.append(len(curve.points))
                curve.points.append((position(case.problem), spread))
    return list(found.values())


def draw_curves(axes: Axes, lines: list[Curve], palette: Palette, scale: str) -> None:
    """Lines with their spread as bands, and hollow points where a case was disturbed."""
    axes.set_xscale("log")
    axes.set_yscale(scale)
    axes.margins(x=0.02)
    for line in lines:
        colour, marker = palette.colour(line.contender), palette.marker(line.contender)
        over = 3 if line.is_ours else 2
        xs = [x for x, _ in line.points]
        low, middle, high = zip(*(spread for _, spread in line.points), strict=True)
        axes.plot(
            xs,
            middle,
            color=colour,
            marker=None if line.is_roofline else marker,
            markersize=4.5,
            linewidth=2.4 if line.is_ours else 1.5,
            linestyle="--" if line.is_roofline else "-",
            zorder=over,
        )
        axes.plot(
            [xs[i] for i in line.disturbed],
            [middle[i] for i in line.disturbed],
            color=colour,
            marker=marker,
            markersize=4.5,
            markerfacecolor="white",
            linestyle="none",
            zorder=over,
        )
        axes.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0)
    _plain_ticks(axes, scale)


def label_curves(axes: Axes, lines: list[Curve], palette: Palette, height: float) -> None:
    """Names beside the right ends of the lines, moved apart where they would overlap.

    ``height``: of the axes, about, in inches.
    """
    axes.autoscale_view()
    to_axes = axes.transScale + axes.transLimits
    ends = [(x, spread[1]) for x, spread in (line.points[-1] for line in lines)]
    places = _apart([to_axes.transform(end)[1] for end in ends], LINE_HEIGHT / (72 * height))
    for line, place in zip(lines, places, strict=True):
        axes.annotate(
            line.label,
            (1, place),
            xycoords="axes fraction",
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=palette.colour(line.contender),
            fontweight="bold" if line.is_ours else "normal",
        )


def short(count: float) -> str:
    """A count on an axis: 10, 1k, 10M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:g}{letter}"
    return f"{count:g}"


def _one_for_each_position(cases: list[Case], position: Position) -> list[Case]:
    """In order; of several cases the one with most to do."""
    largest: dict[int, Case] = {}
    for case in sorted(cases, key=lambda case: case.problem.logits_bytes):
        largest[position(case.problem)] = case
    return [largest[x] for x in sorted(largest)]


def _plain_ticks(axes: Axes, scale: str) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for axis in [axes.xaxis, axes.yaxis] if scale != "linear" else [axes.xaxis]:
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.grid(which="major", color=GRID)
    axes.spines["left"].set_color(INK)


def _apart(heights: list[float], gap: float) -> list[float]:
    """The heights, in their order, each at least a gap from the next, and none off the axes."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = [heights[i] for i in order]
    for _ in range(200):  # settles long before
        for i in range(len(placed) - 1):
            overlap = max(0.0, gap - (placed[i + 1] - placed[i]))
            placed[i] -= overlap / 2
            placed[i + 1] += overlap / 2
        placed[0], placed[-1] = max(0.0, placed[0]), min(1.0, placed[-1])
    return [height for _, height in sorted(zip(order, placed, strict=True))]
