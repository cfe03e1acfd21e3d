"""A comparison in Markdown."""

from __future__ import annotations

from benchmarks.compare.changes import Change, Comparison, Failure
from benchmarks.markdown import number, table


def render(comparison: Comparison) -> str:
    """The comparison in Markdown, the worst first."""
    c = comparison
    parts = [
        f"# {c.suite}: {c.before} -> {c.after}",
        *[f"- Warning: {warning}" for warning in c.warnings],
        _verdict(c),
        *_section("Worse", c.regressions),
        *_failed("No longer runs", c.failures, began=True),
        *_section("Better", c.improvements),
        *_failed("Runs now", c.failures, began=False),
        *_section("Changed of others, for context", c.context),
        *_section("Changed, but not to be believed", c.doubtful, doubts=True),
        *_listed("Only in the earlier run", c.only_before),
        *_listed("Only in the later run", c.only_after),
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(c: Comparison) -> str:
    compared = f"{len(c.changes)} figures compared, threshold {c.threshold:.0%} beyond noise"
    broken = sum(failure.ours and failure.began for failure in c.failures)
    worse = f"{len(c.regressions)} of ours worse, {len(c.improvements)} better"
    return f"**{worse}, {broken} no longer running**; {compared}."


def _section(title: str, changes: list[Change], doubts: bool = False) -> list[str]:
    if not changes:
        return []
    headings = ["case", "contender", "figure", "before", "after", "change", "beyond"]
    if doubts:
        headings.append("why not")
    ordered = sorted(changes, key=lambda change: (change.is_memory, -change.size))
    rows = [_row(change) + ([change.doubt] if doubts else []) for change in ordered]
    return [f"## {title}", table(headings, rows)]


def _row(change: Change) -> list[str]:
    how = "{:+.2f}" if change.is_memory else "{:+.0%}"
    return [
        change.case,
        change.label,
        change.what,
        number(change.before),
        number(change.after),
        how.format(change.size),
        how.format(change.allowance).lstrip("+"),
    ]


def _failed(title: str, failures: list[Failure], began: bool) -> list[str]:
    found = [f"{f.case}: {f.label}: {f.error}" for f in failures if f.began == began]
    return _listed(title, found)


def _listed(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "\n".join(f"- {line}" for line in lines)] if lines else []
