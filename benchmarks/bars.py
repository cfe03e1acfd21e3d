"""What the kernels have to reach, and whether a run does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from benchmarks.markdown import number, table
from benchmarks.results import Case, Measurement, Results


@dataclass(frozen=True)
class Bar:
    """A bound on the cost of a subject over that of another, in every case it concerns."""

    title: str
    subject: str | None
    """None: every subject but the one it is compared with."""
    over: str
    sense: Literal["<=", ">="]
    bound: float
    table: str = "main"
    regime: str | None = None
    concerns: Callable[[Case], bool] = lambda case: True

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


def _is(rows: int, classes: int) -> Callable[[Case], bool]:
    return lambda case: (case.rows, case.classes) == (rows, classes)


def _from(classes: int, dtype: str | None = None) -> Callable[[Case], bool]:
    return lambda case: case.classes >= classes and dtype in (None, case.dtype)


# The kernel is bounded in two forms. In place, nothing but the kernel is timed, but its writes hit
# the cache; out of place on a warm heap they go to other memory, as the copy's do.
_F32, _BF16 = _from(32_000, "float32"), _from(32_000, "bfloat16")
_LARGE, _LONG = _from(1000), _from(32_000)

BARS = (
    Bar("float32 kernel in place / copy", "ours_inplace", "copy", "<=", 1.4, concerns=_F32),
    Bar("bfloat16 kernel in place / copy", "ours_inplace", "copy", "<=", 2.5, concerns=_BF16),
    Bar("float32 one pass / copy", "ours", "copy", "<=", 1.4, regime="warm", concerns=_F32),
    Bar("bfloat16 one pass / copy", "ours", "copy", "<=", 2.5, regime="warm", concerns=_BF16),
    Bar("official / ours, K >= 1000", "official", "ours", ">=", 25, "main", "warm", _LARGE),
    Bar("CE / ours, K >= 1000", "cross_entropy", "ours", ">=", 3, "main", "warm", _LARGE),
    Bar("torch.compile / ours, K >= 1000", "compiled", "ours", ">=", 4, "main", "warm", _LARGE),
    Bar("official / ours, K >= 32000", "official", "ours", ">=", 25, "main", "default", _LONG),
    Bar("CE / ours, K >= 32000", "cross_entropy", "ours", ">=", 2.5, "main", "default", _LONG),
    Bar("torch.compile / ours, K >= 32000", "compiled", "ours", ">=", 3, "main", "default", _LONG),
    Bar("CE / ours, 65536 x 10", "cross_entropy", "ours", ">=", 2.5, concerns=_is(65536, 10)),
    Bar("ours / CE, 128 x 10", "ours", "cross_entropy", "<=", 1.4, concerns=_is(128, 10)),
    # One per cent is for resident pages that are no tensor's.
    Bar("extra memory / logits", "ours", "logits", "<=", 1.01, "memory"),
    Bar("extra memory in place / logits", "ours_inplace", "logits", "<=", 0.01, "memory"),
    Bar("any term / ANL-CE", None, "ours", "<=", 1.5, "terms"),
)  # fmt: skip
"""For CPUs."""


def evaluate(results: Results, bars: tuple[Bar, ...] = BARS) -> list[list[Finding]]:
    """For each bar its findings, the worst first; none if the run has no case it concerns."""
    return [
        sorted(
            (finding for case in results.cases for finding in _findings(bar, case)),
            key=lambda finding: bar.slack(finding.value),
        )
        for bar in bars
    ]


def render(results: Results, every: bool = False) -> str:
    """A Markdown table: a row for each bar with its worst case, or a row for every case."""
    rows = []
    for bar, findings in zip(BARS, evaluate(results), strict=True):
        met = sum(finding.met for finding in findings)
        verdict = f"{'met' if met == len(findings) else 'NOT MET'} ({met} of {len(findings)})"
        start = [bar.title, bar.regime or "any", f"{bar.sense} {bar.bound:g}"]
        if not findings:
            rows.append([*start, "-", "no such case"])
        elif every:
            rows += [[*start, str(f), "met" if f.met else "NOT MET"] for f in findings]
        else:
            rows.append([*start, str(findings[0]), verdict])
    headings = ["bar", "regime", "required", "measured" if every else "worst", "verdict"]
    return table(headings, rows) + "\n"


def _findings(bar: Bar, case: Case) -> list[Finding]:
    if case.table != bar.table or bar.regime not in (None, case.regime) or not bar.concerns(case):
        return []
    measured = [m for m in case.measurements if _is_subject(bar, m)]
    return [Finding(bar, f"{case}, {m.subject}", m.ratios.get(bar.over)) for m in measured]


def _is_subject(bar: Bar, measurement: Measurement) -> bool:
    if bar.subject is None:
        return measurement.subject != bar.over
    return measurement.subject == bar.subject
