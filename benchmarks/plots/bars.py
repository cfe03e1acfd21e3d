"""Horizontal bars: a panel for each case, a bar for each contender."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.markdown import number
from benchmarks.plots.style import FAINT, INK, Palette
from benchmarks.results import Case, Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CUT = 12.0
"""An axis ends at this multiple of the fastest contender's time; longer bars are cut."""


@dataclass(frozen=True)
class Bar:
    """One contender's bar."""

    contender: str
    label: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    is_roofline: bool = False


@dataclass(frozen=True)
class Panel:
    """One case."""

    title: str
    bars: list[Bar]
    limit: float | None = None
    """Where bars are cut."""

    @property
    def has_cut_bars(self) -> bool:
        """Whether a bar is longer than the panel."""
        return any(bar.value > (self.limit or bar.value) for bar in self.bars)


def time_panel(case: Case, factor: float, unit: str) -> Panel:
    """Times of a case, in a unit that is so many to the millisecond."""
    bars = _roofline(case, factor, unit)
    for m in case.measurements:
        if m.error is None and m.milliseconds and not (bars and m.contender == case.roofline):
            spread = m.milliseconds
            low, middle, high = (factor * ms for ms in (spread.p10, spread.median, spread.p90))
            bars.append(
                Bar(m.contender, m.label, middle, _time_text(case, m, middle, unit), low, high)
            )
    fastest = min((bar.value for bar in bars if not bar.is_roofline), default=0.0)
    return Panel(case.brief(), bars, CUT * fastest)


def memory_panel(case: Case) -> Panel:
    """Peak extra memory of a case, in MiB."""
    bars = []
    for m in case.measurements:
        size = case.mebibytes(m)
        if m.error is None and size is not None and m.contender != case.roofline:
            text = f"{number(size)} MiB ({number(m.ratios['logits'])} x)"
            bars.append(Bar(m.contender, m.label, size, text))
    return Panel(case.brief(), bars)


def draw_bars(axes: Axes, panel: Panel, palette: Palette, unit: str) -> None:
    """The bars from the top down, each with its figure; the roofline as a line through all."""
    limit = _limit(panel)
    for place, bar in enumerate(panel.bars):
        if bar.is_roofline:
            axes.axvline(bar.value, color=INK, linestyle="--", linewidth=1.2)
            _write(axes, place, bar.value, limit, bar.text)
        else:
            _draw_bar(axes, place, bar, limit, palette.colour(bar.contender))
    axes.set_yticks(range(len(panel.bars)), [bar.label for bar in panel.bars], color=INK)
    axes.set_ylim(len(panel.bars) - 0.45, -0.55)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, 1.55 * limit)
    axes.set_xlabel(unit, color=FAINT)
    axes.set_title(panel.title, loc="right")  # over the labels: the axes are narrower than it


def _draw_bar(axes: Axes, place: int, bar: Bar, limit: float, colour: str) -> None:
    if bar.value > limit:
        axes.barh(place, limit, height=0.68, color=colour, hatch="//", edgecolor="white")
        _write(axes, place, limit, limit, f"\N{MUCH GREATER-THAN} {bar.text}")
        return
    axes.barh(place, bar.value, height=0.68, color=colour)
    end = bar.value
    if bar.low is not None and bar.high is not None:
        end = max(end, min(bar.high, limit))
        axes.hlines(place, bar.low, end, color=INK, linewidth=1, alpha=0.7)
    _write(axes, place, end, limit, bar.text)


def _write(axes: Axes, place: int, end: float, limit: float, text: str) -> None:
    axes.text(end + 0.012 * limit, place, text, va="center", fontsize=8)


def _limit(panel: Panel) -> float:
    longest = max(bar.value for bar in panel.bars)
    return min(longest, panel.limit or longest) or 1.0


def _roofline(case: Case, factor: float, unit: str) -> list[Bar]:
    """None where the least time is not known; the contender is a bar like others then."""
    roofline = case[case.roofline or ""]
    if roofline.milliseconds is None or case.floor is None:
        return []
    times = "" if case.floor == 1 else f"{case.floor:g} x "
    value = factor * case.floor * roofline.milliseconds.median
    text = f"{number(value)} {unit}"
    return [Bar(roofline.contender, f"{times}{roofline.label}", value, text, is_roofline=True)]


def _time_text(case: Case, measurement: Measurement, value: float, unit: str) -> str:
    over = case.over_ours(measurement)
    factor = f" ({number(over)} x)" if over and measurement.contender != case.ours else ""
    return f"{number(value)} {unit}{factor}"
