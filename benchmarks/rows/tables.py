"""The Markdown of the suite, from its results alone."""

from __future__ import annotations

from benchmarks.markdown import table
from benchmarks.results import Case, Results
from benchmarks.rows import gpu_tables
from benchmarks.rows.parts import (
    bandwidth,
    compile_times,
    groups,
    heading,
    median,
    microseconds,
    ratio,
    reservations,
    section,
    terms,
)

PEERS = ("cross_entropy", "compiled", "official")
LATENCY_ELEMENTS = 10_000
"""Up to this size a case measures the way to the kernel, not the kernel."""

NOTES = """\
Median milliseconds of forward and backward, the release of the gradient included; x copy: over a \
copy of as many bytes into mapped memory; (n x): over anl_kernels. Ratios are medians over \
interleaved rounds. GB/s: one read and one write of the logits, over the time. F.cross_entropy is \
plain CE and does less. Regimes: `default` allocator, as users get it; `warm`, where freed memory \
stays mapped (MALLOC_MMAP_MAX_=0). sigma: standard deviation of the logits. inplace=True writes to \
lines that it has just read, which a copy cannot."""


def render(results: Results) -> str:
    """The whole document."""
    parts = gpu_tables.document if results.device == "cuda" else document
    return "\n\n".join(parts(results)) + "\n"


def document(results: Results) -> list[str]:
    """Paragraphs and tables of a run on a CPU."""
    parts = [heading(results), NOTES]
    for group in groups(results, "main"):
        parts.append(f"## ANL-CE, {group[0].regime}, {group[0].dtype}")
        parts += [_main(group), *compile_times(group)]
    parts += section("## Overhead (microseconds, p10-p90)", _overhead(_small(results)))
    parts += section("## Every term over ANL-CE", *map(terms, groups(results, "terms")))
    parts += section("## Peak extra memory, gradient included", _memory(results))
    return parts + reservations(results)


def _main(cases: list[Case]) -> str:
    headings = [
        "logits", "sigma", "anl_kernels", "GB/s", "x copy", "in place", "x copy", "copy",
        "F.cross_entropy", "torch.compile", "official eager",
    ]  # fmt: skip
    return table(headings, [_main_row(case) for case in cases])


def _main_row(case: Case) -> list[str]:
    ours, inplace, copy = case["ours"], case["ours_inplace"], case["copy"]
    return [
        f"{case.rows} x {case.classes}",
        f"{case.scale:g}",
        median(ours),
        bandwidth(case, ours),
        ratio(ours, "copy"),
        median(inplace),
        ratio(inplace, "copy"),
        median(copy),
        *(f"{median(case[peer])} ({ratio(case[peer], 'ours')} x)" for peer in PEERS),
    ]


def _small(results: Results) -> list[Case]:
    main = [case for case in results.cases if case.table == "main"]
    return [case for case in main if case.rows * case.classes <= LATENCY_ELEMENTS]


def _overhead(cases: list[Case]) -> str:
    if not cases:
        return ""
    rows = [
        [str(case), *(microseconds(m.milliseconds) for m in case.measurements)] for case in cases
    ]
    return table(["case", *(m.label for m in cases[0].measurements)], rows)


def _memory(results: Results) -> str:
    cases = [case for case in results.cases if case.table == "memory"]
    rows = [
        [m.label, f"{m.ratios['logits']:.2f}"] for c in cases for m in c.measurements if m.ratios
    ]
    return (
        table([f"{cases[0].rows} x {cases[0].classes} {cases[0].dtype}", "x logits"], rows)
        if rows
        else ""
    )
