"""Whether a run reaches what the kernels have to reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.markdown import number, table
from benchmarks.results import Case, Measurement, Results


@dataclass(frozen=True)
class Bar:
    """A bound on the cost of a subject over that of another, in every case it concerns."""

    title: str
    subject: str | None
    """None: every subject but the roof and the one it is compared with."""
    over: str
    sense: Literal["<=", ">="]
    bound: float
    tables: tuple[str, ...] = ("main", "sigma")
    regime: str | None = None
    concerns: Callable[[Case], bool] = lambda case: True
    device: str = "cpu"
    suite: str = "rows"
    memory: bool = False
    """Of subjects' peak extra memory, not of times; over "logits" that is so anyway."""

    def value(self, case: Case, measurement: Measurement) -> float | None:
        """The figure that is bounded; None if one of the two is not known."""
        if self.memory:
            return case.memory_over(measurement, self.over)
        return measurement.ratios.get(self.over)

    def slack(self, value: float | None) -> float:
        """The distance to the bound as a factor, below 1 on the wrong side of it."""
        if value is None:
            return 0.0
        return value / self.bound if self.sense == ">=" else self.bound / max(value, 1e-12)


@dataclass(frozen=True)
class Finding:
    """A bar in one case."""

    bar: Bar
    case: str
    value: float | None
    """None: one of the two failed."""

    @property
    def met(self) -> bool:
        """Whether the figure is there and within the bound."""
        return self.bar.slack(self.value) >= 1

    def __str__(self) -> str:
        """The figure, and where it was found."""
        return f"{'not measured' if self.value is None else number(self.value)} at {self.case}"


def evaluate(results: Results, bars: Sequence[Bar]) -> list[list[Finding]]:
    """For each bar its findings, the worst first; none if the run has no case it concerns."""
    return [
        sorted(
            (finding for case in _concerned(bar, results) for finding in _findings(bar, case)),
            key=lambda finding: bar.slack(finding.value),
        )
        for bar in bars
    ]


def render(results: Results, bars: Sequence[Bar], every: bool = False) -> str:
    """A Markdown table: a row for each bar with its worst case, or a row for every case."""
    rows = []
    held = results.device, results.suite
    bars = [bar for bar in bars if (bar.device, bar.suite) == held]
    if not bars:
        return "No bar is set for this suite.\n"
    for bar, findings in zip(bars, evaluate(results, bars), strict=True):
        start = [bar.title, bar.regime or "any", f"{bar.sense} {bar.bound:g}"]
        if not findings:
            rows.append([*start, "-", "no such case"])
        elif every:
            rows += [[*start, str(f), "met" if f.met else "NOT MET"] for f in findings]
        else:
            rows.append([*start, str(findings[0]), _verdict(findings)])
    headings = ["bar", "regime", "required", "measured" if every else "worst", "verdict"]
    return table(headings, rows) + "\n"


def _verdict(findings: list[Finding]) -> str:
    met = sum(finding.met for finding in findings)
    if all(finding.value is None for finding in findings):
        return f"NOT MEASURED (in {len(findings)})"
    return f"{'met' if met == len(findings) else 'NOT MET'} ({met} of {len(findings)})"


def _concerned(bar: Bar, results: Results) -> list[Case]:
    if (bar.suite, bar.device) != (results.suite, results.device):
        return []
    cases = [case for case in results.cases if case.table in bar.tables and bar.concerns(case)]
    return [case for case in cases if bar.regime in (None, case.regime)]


def _findings(bar: Bar, case: Case) -> list[Finding]:
    measured = [m for m in case.measurements if _is_subject(bar, case, m)]
    return [Finding(bar, f"{case}, {m.subject}", bar.value(case, m)) for m in measured]


def _is_subject(bar: Bar, case: Case, measurement: Measurement) -> bool:
    if bar.subject is None:
        return measurement.subject not in (bar.over, case.roof)
    return measurement.subject == bar.subject
