"""What the documents of all devices are made of."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.markdown import number, table
from benchmarks.results import Case, Measurement, Quantiles, Results


def heading(results: Results) -> str:
    """Machine, versions, commit."""
    machine, versions = results.environment["machine"], results.environment["versions"]
    git = results.environment["git"]
    gibibytes = machine["memory_bytes"] / 2**30
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return "\n".join(
        [
            f"# {results.suite}, {results.created}",
            "",
            *([_gpu(machine["gpu"])] if "gpu" in machine else []),
            f"- {machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
            f"{machine['isa']}, {gibibytes:.0f} GiB, {machine['kernel']}; "
            f"load before the run {machine['load_average_before']:.2f}",
            f"- {installed}; commit {git['commit']}{', with changes' if git['dirty'] else ''}",
            f"- backend: **{results.backend}**; {len(results.checks)} checks against "
            "float64 passed",
        ]
    )


def _gpu(gpu: dict) -> str:
    return (
        f"- {gpu['name']}, compute capability {gpu['capability']}, "
        f"{gpu['multiprocessors']} multiprocessors, {gpu['l2_bytes'] / 2**20:.0f} MiB of L2, "
        f"{gpu['memory_bytes'] / 2**30:.0f} GiB, driver {gpu['driver'] or 'unknown'}"
    )


def section(title: str, *bodies: str) -> list[str]:
    """Paragraphs under a title; nothing if they are empty."""
    found = [body for body in bodies if body]
    return [title, *found] if found else []


def groups(results: Results, name: str) -> list[list[Case]]:
    """The cases of a table by regime, dtype and backend."""
    found: dict[tuple[str, str, str], list[Case]] = {}
    for case in results.cases:
        if case.table == name:
            found.setdefault((case.regime, case.dtype, case.backend), []).append(case)
    return list(found.values())


def compile_times(cases: list[Case]) -> list[str]:
    """How long the compiler took, in a sentence."""
    firsts = [case["compiled"].first_call_ms for case in cases]
    seconds = sorted(ms / 1e3 for ms in firsts if ms is not None)
    if not seconds:
        return []
    return [
        f"First call of torch.compile, apart from these figures: {number(seconds[0])} to "
        f"{number(seconds[-1])} s (compilation, unless in memory or in its cache on disk)."
    ]


def bandwidth(case: Case, measurement: Measurement) -> str:
    """GB/s of one read and one write of the logits."""
    if measurement.milliseconds is None:
        return "-"
    traffic = 2 * case.rows * case.classes * getattr(torch, case.dtype).itemsize
    return number(traffic / measurement.milliseconds.median / 1e6)


def median(measurement: Measurement) -> str:
    """Milliseconds."""
    spread = measurement.milliseconds
    return number(spread.median) if spread else "-"


def ratio(measurement: Measurement, baseline: str) -> str:
    """Time over that of another subject."""
    value = measurement.ratios.get(baseline)
    return number(value) if value else "-"


def microseconds(spread: Quantiles | None) -> str:
    """Median and spread."""
    if spread is None:
        return "-"
    median, p10, p90 = (number(1e3 * ms) for ms in (spread.median, spread.p10, spread.p90))
    return f"{median} ({p10}-{p90})"


def terms(cases: list[Case]) -> str:
    """Every term next to ANL-CE."""
    (case,) = cases
    rows = [[m.label, median(m), ratio(m, "ours")] for m in case.measurements]
    return table([str(case), "ms", "x ANL-CE"], rows)


def reservations(results: Results) -> list[str]:
    """What is not to be believed, and what could not run."""
    return [
        *section("## Disturbed, not to be believed", "\n".join(_disturbed(results))),
        *section("## Could not run", "\n".join(_errors(results))),
    ]


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
