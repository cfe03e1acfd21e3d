"""What measurements have to meet: each suite has its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from benchmarks.markdown import number, table
from benchmarks.results import Case, Measurement, Results

Concerns = Callable[[Case], bool]


def of_shape(rows: int, classes: int, dtype: str | None = None) -> Concerns:
    """Cases of a size, in any dtype or in one."""
    sizes = rows, classes
    return lambda case: (
        (case.problem.rows, case.problem.classes) == sizes and dtype in (None, case.problem.dtype)
    )


def from_classes(least: int, dtype: str | None = None) -> Concerns:
    """Cases of so many classes or more, in any dtype or in one."""
    return lambda case: case.problem.classes >= least and dtype in (None, case.problem.dtype)


@dataclass(frozen=True)
class Target:
    """A bound on the cost of a contender over that of another, in every case it concerns."""

    title: str
    contender: str | None
    """None: every contender but the roofline and the one it is compared with."""
    over: str | None
    """None: over nothing, so that the bound is in milliseconds."""
    sense: Literal["<=", ">="]
    bound: float
    tables: tuple[str, ...] = ("main",)
    regime: str | None = None
    concerns: Concerns = lambda case: True
    device: str = "cpu"
    memory: bool = False
    """Of contenders' peak extra memory, not of times; over "logits" that is so anyway."""

    def value(self, case: Case, measurement: Measurement) -> float | None:
        """The figure that is bounded; None if one of the two is not known."""
        if self.over is None:
            spread = measurement.milliseconds
            return spread.median if spread else None
        if self.memory:
            return case.memory_over(measurement, self.over)
        return measurement.ratios.get(self.over)

    def slack(self, value: float | None) -> float:
        """The distance to the bound as a factor, below 1 on the wrong side of it."""
        if value is None:
            return 0.0
        return value / self.bound if self.sense == ">=" else self.bound / max(value, 1e-12)

    def findings(self, results: Results) -> list[Finding]:
        """The figures of all cases it concerns, the worst first."""
        found = [
            Finding(self, f"{case}, {m.contender}", self.value(case, m))
            for case in results.cases
            if self._concerns(case)
            for m in case.measurements
            if self._is_of(case, m)
        ]
        return sorted(found, key=lambda finding: self.slack(finding.value))

    def _concerns(self, case: Case) -> bool:
        there = case.table in self.tables and self.regime in (None, case.regime)
        return there and self.concerns(case)

    def _is_of(self, case: Case, measurement: Measurement) -> bool:
        if self.contender is None:
            return measurement.contender not in (self.over, case.roofline)
        return measurement.contender == self.contender


@dataclass(frozen=True)
class Finding:
    """A target in one case."""

    target: Target
    case: str
    value: float | None
    """None: one of the two failed."""

    @property
    def met(self) -> bool:
        """Whether the figure is there and within the bound."""
        return self.target.slack(self.value) >= 1

    def __str__(self) -> str:
        """The figure, and where it was found."""
        return f"{'not measured' if self.value is None else number(self.value)} at {self.case}"


Findings = dict[Target, list[Finding]]


def evaluate(results: Results, targets: Iterable[Target]) -> Findings:
    """The findings of each target of the device; none if the run has no case it concerns."""
    return {one: one.findings(results) for one in targets if one.device == results.device}


def missed(found: Findings) -> list[str]:
    """The titles of those that a figure misses; what was not measured misses nothing."""
    figures = {one.title: [f for f in of if f.value is not None] for one, of in found.items()}
    return [title for title, of in figures.items() if not all(finding.met for finding in of)]


def render(found: Findings, every: bool = False) -> str:
    """A Markdown table: a row for each target with its worst case, or a row for every case."""
    if not found:
        return "No target is set for this suite.\n"
    rows = []
    for one, findings in found.items():
        start = [one.title, one.regime or "any", f"{one.sense} {one.bound:g}"]
        if not findings:
            rows.append([*start, "-", "no such case"])
        elif every:
            rows += [[*start, str(f), "met" if f.met else "NOT MET"] for f in findings]
        else:
            rows.append([*start, str(findings[0]), _verdict(findings)])
    headings = ["target", "regime", "required", "measured" if every else "worst", "verdict"]
    return table(headings, rows) + "\n"


def _verdict(findings: list[Finding]) -> str:
    met = sum(finding.met for finding in findings)
    if all(finding.value is None for finding in findings):
        return f"NOT MEASURED (in {len(findings)})"
    return f"{'met' if met == len(findings) else 'NOT MET'} ({met} of {len(findings)})"
