"""Horizontal bars: a panel for each case, a bar for each subject."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.markdown import number
from benchmarks.plots.style import FAINT, INK, Palette
from benchmarks.results import Case, Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CUT = 12.0
"""An axis ends at this multiple of the fastest subject's time; longer bars are cut."""
MIB = 2.0**20


@dataclass(frozen=True)
class Bar:
    """One subject's bar."""

    subject: str
    label: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    is_roof: bool = False


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
    bars = _roof(case, factor, unit)
    for m in case.measurements:
        if m.error is None and m.milliseconds and not (bars and m.subject == case.roof):
            spread = m.milliseconds
            low, middle, high = (factor * ms for ms in (spread.p10, spread.median, spread.p90))
            bars.append(
                Bar(m.subject, m.label, middle, _time_text(case, m, middle, unit), low, high)
            )
    fastest = min((bar.value for bar in bars if not bar.is_roof), default=0.0)
    return Panel(_title(case), bars, CUT * fastest)


def memory_panel(case: Case) -> Panel:
    """Peak extra memory of a case, in MiB."""
    bars = []
    for m in case.measurements:
        if m.error is None and "logits" in m.ratios and m.subject != case.roof:
            over = m.ratios["logits"]
            size = max(0.0, over * case.problem.logits_bytes / MIB)
            bars.append(Bar(m.subject, m.label, size, f"{number(size)} MiB ({number(over)} x)"))
    return Panel(_title(case), bars)


def draw_bars(axes: Axes, panel: Panel, palette: Palette, unit: str) -> None:
    """The bars from the top down, each with its figure; the roof as a line through all of them."""
    limit = _limit(panel)
    for place, bar in enumerate(panel.bars):
        if bar.is_roof:
            axes.axvline(bar.value, color=INK, linestyle="--", linewidth=1.2)
            _write(axes, place, bar.value, limit, bar.text)
        else:
            _draw_bar(axes, place, bar, limit, palette.colour(bar.subject))
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


def _roof(case: Case, factor: float, unit: str) -> list[Bar]:
    """None where the least time is not known; the roof's subject is a bar like others then."""
    roof = case[case.roof or ""]
    if roof.milliseconds is None or case.floor is None:
        return []
    times = "" if case.floor == 1 else f"{case.floor:g} x "
    value = factor * case.floor * roof.milliseconds.median
    text = f"{number(value)} {unit}"
    return [Bar(roof.subject, f"{times}{roof.label}", value, text, is_roof=True)]


def _time_text(case: Case, measurement: Measurement, value: float, unit: str) -> str:
    over = case.over_ours(measurement)
    factor = f" ({number(over)} x)" if over and measurement.subject != case.ours else ""
    return f"{number(value)} {unit}{factor}"


def _title(case: Case) -> str:
    problem = case.problem
    phase = "" if problem.phase == "both" else f", {problem.phase}"
    return f"{problem.shape} {problem.dtype}{phase}{' (disturbed)' if case.disturbed else ''}"
