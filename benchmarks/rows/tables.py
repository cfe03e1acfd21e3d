"""The Markdown of the suite, from its results alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.markdown import number, table
from benchmarks.results import Case, Measurement, Results

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
    parts = [_heading(results), NOTES]
    for group in _groups(results, "main"):
        parts.append(f"## ANL-CE, {group[0].regime}, {group[0].dtype}")
        parts += [_main(group), *_compile_times(group)]
    parts += _section("## Overhead (microseconds, p10-p90)", _overhead(_small(results)))
    parts += _section("## Every term over ANL-CE", *map(_terms, _groups(results, "terms")))
    parts += _section("## Peak extra memory, gradient included", _memory(results))
    parts += _section("## Disturbed, not to be believed", "\n".join(_disturbed(results)))
    parts += _section("## Could not run", "\n".join(_errors(results)))
    return "\n\n".join(parts) + "\n"


def _heading(results: Results) -> str:
    machine, versions = results.environment["machine"], results.environment["versions"]
    git = results.environment["git"]
    gibibytes = machine["memory_bytes"] / 2**30
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return "\n".join(
        [
            f"# {results.suite}, {results.created}",
            "",
            f"- {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
            f"{machine['isa']}, {gibibytes:.0f} GiB, {machine['kernel']}; "
            f"load before the run {machine['load_average_before']:.2f}",
            f"- {installed}; commit {git['commit']}{', with changes' if git['dirty'] else ''}",
            f"- backend: **{results.backend}**; {len(results.checks)} checks against "
            "float64 passed",
        ]
    )


def _section(title: str, *bodies: str) -> list[str]:
    found = [body for body in bodies if body]
    return [title, *found] if found else []


def _groups(results: Results, name: str) -> list[list[Case]]:
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in results.cases:
        if case.table == name:
            groups.setdefault((case.regime, case.dtype), []).append(case)
    return list(groups.values())


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
        _median(ours),
        _bandwidth(case, ours),
        _ratio(ours, "copy"),
        _median(inplace),
        _ratio(inplace, "copy"),
        _median(copy),
        *(f"{_median(case[peer])} ({_ratio(case[peer], 'ours')} x)" for peer in PEERS),
    ]


def _compile_times(cases: list[Case]) -> list[str]:
    firsts = [case["compiled"].first_call_ms for case in cases]
    seconds = sorted(ms / 1e3 for ms in firsts if ms is not None)
    if not seconds:
        return []
    return [
        f"First call of torch.compile, apart from these figures: {number(seconds[0])} to "
        f"{number(seconds[-1])} s (compilation, unless in memory or in its cache on disk)."
    ]


def _bandwidth(case: Case, measurement: Measurement) -> str:
    if measurement.milliseconds is None:
        return "-"
    traffic = 2 * case.rows * case.classes * getattr(torch, case.dtype).itemsize
    return number(traffic / measurement.milliseconds.median / 1e6)


def _median(measurement: Measurement) -> str:
    spread = measurement.milliseconds
    return number(spread.median) if spread else "-"


def _ratio(measurement: Measurement, baseline: str) -> str:
    value = measurement.ratios.get(baseline)
    return number(value) if value else "-"


def _small(results: Results) -> list[Case]:
    main = [case for case in results.cases if case.table == "main"]
    return [case for case in main if case.rows * case.classes <= LATENCY_ELEMENTS]


def _overhead(cases: list[Case]) -> str:
    if not cases:
        return ""
    rows = [[str(case), *map(_microseconds, case.measurements)] for case in cases]
    return table(["case", *(m.label for m in cases[0].measurements)], rows)


def _microseconds(measurement: Measurement) -> str:
    spread = measurement.milliseconds
    if spread is None:
        return "-"
    median, p10, p90 = (number(1e3 * ms) for ms in (spread.median, spread.p10, spread.p90))
    return f"{median} ({p10}-{p90})"


def _terms(cases: list[Case]) -> str:
    (case,) = cases
    rows = [[m.label, _median(m), _ratio(m, "ours")] for m in case.measurements]
    return table([str(case), "ms", "x ANL-CE"], rows)


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


def _disturbed(results: Results) -> Iterator[str]:
    for case in results.cases:
        if case.disturbed:
            yield f"- {case.table}, {case}: others had {case.taken_by_others:.0%} of the CPUs"


def _errors(results: Results) -> Iterator[str]:
    yield from (f"- {failure}" for failure in results.failures)
    for case in results.cases:
        for measurement in case.measurements:
            if measurement.error:
                yield f"- {case.table}, {case}: {measurement.label}: {measurement.error}"
