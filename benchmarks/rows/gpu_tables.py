"""The Markdown of a run on a GPU."""

from __future__ import annotations

from benchmarks.markdown import number, table
from benchmarks.results import Case, Measurement, Results
from benchmarks.rows.parts import (
    bandwidth,
    groups,
    heading,
    median,
    microseconds,
    ratio,
    reservations,
    section,
    terms,
)

CAUGHT_UP = 0.1
"""Share of the samples from which on a time is marked."""

NOTES = """\
Median milliseconds of the GPU for forward and backward, between two events. The GPU is kept busy \
until the host has queued the step, so that launches are no part of it. %: share of the bandwidth \
of a device-to-device copy of as many bytes in the same rounds (both move the logits' size twice, \
at the least); GB/s: that traffic over the time; x ours: over anl_kernels with "auto". Ratios are \
medians over interleaved rounds. "does less": plain cross entropy. Subjects that write over their \
logits are given a copy, restored outside the timed steps. Extra memory: peak of PyTorch's \
allocator beyond the logits and labels, gradient included, over the logits' size. Host: \
microseconds to queue the step, median (p10-p90). First call: with compilation, unless that is in \
memory or in a cache on disk; the other figures are without. *: in a tenth of the samples or more \
the GPU had caught up with the host, so that the time may contain waiting; always so for subjects \
that wait for the GPU themselves."""


def document(results: Results) -> list[str]:
    """Paragraphs and tables."""
    parts = [heading(results), NOTES]
    for group in groups(results, "main"):
        parts.append(f"## ANL-CE, {group[0].dtype}: % of the copy's bandwidth (ms)")
        parts.append(_overview(group))
    for case in (case for group in groups(results, "main") for case in group):
        parts += [f"### {case}", _details(case)]
    parts += section("## Every term over ANL-CE", *map(terms, groups(results, "terms")))
    return parts + reservations(results)


def _overview(cases: list[Case]) -> str:
    """A row for each subject, a column for each shape."""
    labels = {m.subject: m.label for case in cases for m in case.measurements}
    several = len({case.scale for case in cases}) > 1
    columns = [
        f"{case.rows} x {case.classes}{f', x{case.scale:g}' if several else ''}" for case in cases
    ]
    rows = [[label, *(_cell(case[name]) for case in cases)] for name, label in labels.items()]
    chosen = ['"auto" takes', *(case.auto or "-" for case in cases)]
    return table(["subject", *columns], [chosen, *rows])


def _cell(measurement: Measurement) -> str:
    return f"{_percent(measurement)} ({median(measurement)}{_mark(measurement)})"


def _details(case: Case) -> str:
    headings = [
        "subject", "ms", "p10-p90", "GB/s", "%", "x ours", "extra memory", "host", "samples",
        "first call",
    ]  # fmt: skip
    return table(headings, [_row(case, m) for m in case.measurements])


def _row(case: Case, measurement: Measurement) -> list[str]:
    spread = measurement.milliseconds
    return [
        measurement.label,
        median(measurement) + _mark(measurement),
        f"{number(spread.p10)}-{number(spread.p90)}" if spread else "-",
        bandwidth(case, measurement),
        _percent(measurement),
        ratio(measurement, "ours"),
        f"{measurement.ratios['logits']:.2f}" if "logits" in measurement.ratios else "-",
        microseconds(measurement.host_milliseconds),
        str(spread.samples) if spread else "-",
        _seconds(measurement.first_call_ms),
    ]


def _seconds(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{number(milliseconds / 1e3)} s"


def _percent(measurement: Measurement) -> str:
    over_copy = measurement.ratios.get("copy")
    return f"{100 / over_copy:.0f}%" if over_copy else "-"


def _mark(measurement: Measurement) -> str:
    return "*" if (measurement.caught_up or 0.0) >= CAUGHT_UP else ""
