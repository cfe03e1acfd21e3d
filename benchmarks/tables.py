"""The Markdown of a run, from its results alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from benchmarks.markdown import number, table
from benchmarks.plots.select import time_unit
from benchmarks.problems import PHASES
from benchmarks.results import FEW_SAMPLES, Case, Measurement, Quantiles, Results
from benchmarks.suites import SUITES

CAUGHT_UP = 0.1
"""Share of the samples from which on a time is marked."""

NOTES = """\
Cells: median milliseconds, or microseconds where the table says so (% of the roofline, x ours). \
Roofline: what no implementation can be faster than, a contender of the same rounds; % of it: the \
least possible time over the measured one. x ours: over anl_kernels. Ratios are medians over \
interleaved rounds. sigma: standard deviation of the logits. "does less": plain cross entropy. \
†: fewer than 5 samples. Contenders that write over their inputs are given a copy, restored \
outside the timed steps."""
ON_CPU = """\
The release of the gradient is timed, too. Regimes: `default` allocator, as users get it; \
`warm`, where freed memory stays mapped (MALLOC_MMAP_MAX_=0). Extra memory: the rise of the \
process's resident memory at its peak, gradient included."""
ON_GPU = """\
Times are the GPU's, between two events; it is kept busy until the host has queued the step, so \
that launches are no part of them. Extra memory: peak of PyTorch's allocator beyond the inputs, \
gradient included. *: in a tenth of the samples or more the GPU had caught up with the host, so \
that the time may contain waiting; always so for contenders that wait for the GPU themselves."""


def render(results: Results) -> str:
    """The document: a table for each dtype, regime and so on, a row for each contender."""
    notes = [NOTES, ON_CPU if results.device == "cpu" else ON_GPU, SUITES[results.suite].notes]
    parts = [heading(results), " ".join(note for note in notes if note)]
    for group in groups(results):
        parts += [f"## {_title(results, group[0])}", _overview(group)]
        parts += _compile_times(group)
    return "\n\n".join([*parts, *_reservations(results)]) + "\n"


def details(results: Results) -> str:
    """All figures of every case."""
    parts = [heading(results)]
    for case in results.cases:
        parts += [f"## {case.table}: {case}", _details(case)]
    return "\n\n".join([*parts, *_reservations(results)]) + "\n"


def heading(results: Results) -> str:
    """Machine, versions, commit."""
    machine, versions = results.environment["machine"], results.environment["versions"]
    git = results.environment["git"]
    gibibytes = machine["memory_bytes"] / 2**30
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return "\n".join(
        [
            f"# {results.suite}: {SUITES[results.suite].title}",
            "",
            *([_gpu(machine["gpu"])] if "gpu" in machine else []),
            f"- {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
            f"{machine['isa']}, {gibibytes:.0f} GiB, {machine['kernel']}; "
            f"load before the run {machine['load_average_before']:.2f}",
            f"- {installed}; commit {git['commit']}{', with changes' if git['dirty'] else ''}",
            f"- {results.created}, {results.seconds:.0f} s; backend **{results.backend}**; "
            f"{len(results.checks)} checks against float64 passed",
        ]
    )


def groups(results: Results) -> list[list[Case]]:
    """The cases that make a table together: those that differ in their sizes alone."""
    found: dict[tuple, list[Case]] = {}
    for case in results.cases:
        problem = case.problem
        # Memory layouts are columns beside each other, and parts of a step are.
        key = case.table, case.regime, problem.dtype, case.backend, _sigma(case)
        found.setdefault(key, []).append(case)
    return list(found.values())


def _sigma(case: Case) -> float | None:
    return None if case.table == "sigma" else case.problem.sigma


def _title(results: Results, case: Case) -> str:
    name = SUITES[results.suite].title_of(case.table)
    if not case.problem.rows:
        return name
    sigma = [] if _sigma(case) is None else [f"sigma {case.problem.sigma:g}"]
    regime = [f"{case.regime} allocator"] if results.device == "cpu" else []
    backend = [f"on {case.backend}"] if case.backend != "auto" else []
    return ", ".join([name, case.problem.dtype, *sigma, *regime, *backend])


def _gpu(gpu: dict) -> str:
    return (
        f"- {gpu['name']}, compute capability {gpu['capability']}, "
        f"{gpu['multiprocessors']} multiprocessors, {gpu['l2_bytes'] / 2**20:.0f} MiB of L2, "
        f"{gpu['memory_bytes'] / 2**30:.0f} GiB, driver {gpu['driver'] or 'unknown'}"
    )


def _overview(cases: list[Case]) -> str:
    labels = {m.contender: m.label for case in cases for m in case.measurements}
    columns = [_column(case, cases) for case in cases]
    factor, unit = time_unit(cases)
    rows = [
        [label, *(_cell(case, case[name], factor) for case in cases)]
        for name, label in labels.items()
    ]
    if any(case.auto and case.problem.device != "cpu" for case in cases):
        rows.insert(0, ['"auto" takes', *(case.auto or "-" for case in cases)])
    return table(["contender" if unit == "ms" else "microseconds", *columns], rows)


def _column(case: Case, cases: list[Case]) -> str:
    """What tells the case from others beside it."""
    problem = case.problem
    sigma = f", sigma {problem.sigma:g}" if _sigma(case) is None else ""
    phases = {other.problem.phase for other in cases}
    phase = f", {PHASES[problem.phase]}" if len(phases) > 1 else ""
    return problem.shape + sigma + phase + (" (disturbed)" if case.disturbed else "")


def _cell(case: Case, measurement: Measurement, factor: float) -> str:
    if measurement.milliseconds is None:
        return memory(case, measurement)
    share, over_ours = case.share_of_roofline(measurement), case.over_ours(measurement)
    facts = [f"{100 * share:.0f}%"] if share else []
    if over_ours and measurement.contender != case.ours:
        facts.append(f"{number(over_ours)} x")
    time = number(factor * measurement.milliseconds.median) + _mark(measurement)
    return f"{time} ({', '.join(facts)})" if facts else time


def memory(case: Case, measurement: Measurement) -> str:
    """Extra memory, absolute and over the logits."""
    size = case.mebibytes(measurement)
    if size is None:
        return "-"
    return f"{number(size)} MiB ({measurement.ratios['logits']:.2f} x logits)"


def _details(case: Case) -> str:
    headings = [
        "contender", "ms", "p10-p90", _unit(case), "% of roofline", "x ours", "extra memory",
        "host (us)", "samples", "first call",
    ]  # fmt: skip
    return table(headings, [_row(case, m) for m in case.measurements])


def _row(case: Case, measurement: Measurement) -> list[str]:
    spread, share = measurement.milliseconds, case.share_of_roofline(measurement)
    first = measurement.first_call_ms
    speed = case.gigabytes_per_second(measurement) or case.teraflops_per_second(measurement)
    over_ours = case.over_ours(measurement)
    return [
        measurement.label,
        number(spread.median) + _mark(measurement) if spread else "-",
        f"{number(spread.p10)}-{number(spread.p90)}" if spread else "-",
        number(speed) if speed else "-",
        f"{100 * share:.0f}%" if share else "-",
        number(over_ours) if over_ours else "-",
        memory(case, measurement),
        microseconds(measurement.host_milliseconds),
        str(spread.samples) if spread else "-",
        f"{number(first / 1e3)} s" if first is not None else "-",
    ]


def _unit(case: Case) -> str:
    """Of the speed: of what the roofline is bound by."""
    return "TFLOP/s" if case.roofline == "products" else "GB/s"


def microseconds(spread: Quantiles | None) -> str:
    """Median and spread."""
    if spread is None:
        return "-"
    median, p10, p90 = (number(1e3 * ms) for ms in (spread.median, spread.p10, spread.p90))
    return f"{median} ({p10}-{p90})"


def _mark(measurement: Measurement) -> str:
    spread = measurement.milliseconds
    few = "†" if spread and spread.samples < FEW_SAMPLES else ""
    return few + ("*" if (measurement.caught_up or 0.0) >= CAUGHT_UP else "")


def _compile_times(cases: list[Case]) -> list[str]:
    """How long compilers took, in a sentence."""
    found: dict[str, list[float]] = {}
    for measurement in (m for case in cases for m in case.measurements):
        if "torch.compile" in measurement.label and measurement.first_call_ms is not None:
            found.setdefault(measurement.label, []).append(measurement.first_call_ms / 1e3)
    if not found:
        return []
    ranges = (f"{label} {_range(seconds)}" for label, seconds in found.items())
    return [
        f"First calls, apart from these figures and in seconds: {'; '.join(ranges)} (compilation, "
        "unless in memory or in the compiler's cache on disk)."
    ]


def _range(values: list[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def _reservations(results: Results) -> list[str]:
    """What is not to be believed, and what could not run."""
    return [
        *_section("## Disturbed, not to be believed", _disturbed(results)),
        *_section("## Could not run", _errors(results)),
    ]


def _section(title: str, lines: Iterator[str]) -> list[str]:
    body = "\n".join(lines)
    return [title, body] if body else []


def _disturbed(results: Results) -> Iterator[str]:
    for case in results.cases:
        if case.disturbed:
            yield f"- {case.table}, {case}: others had {case.taken_by_others:.0%} of the CPUs"


def _errors(results: Results) -> Iterator[str]:
    """A contender that fails alike everywhere is one line."""
    yield from (f"- {failure}" for failure in results.failures)
    failed = [(c, m) for c in results.cases for m in c.measurements if m.error]
    counts = Counter((m.label, m.error) for _, m in failed)
    for case, measurement in failed:
        count = counts.pop((measurement.label, measurement.error), 0)
        where = f"{case.table}, {case}" if count == 1 else f"in {count} cases"
        if count:
            yield f"- {measurement.label}, {where}: {measurement.error}"
