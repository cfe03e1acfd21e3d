"""What the top-level README says of performance: computed from the committed results."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from benchmarks.markdown import number, table
from benchmarks.plots import planned
from benchmarks.plots.captions import commit, machine
from benchmarks.plots.plan import heading
from benchmarks.plots.select import overtaking, typical, whole_steps, with_memory
from benchmarks.report.cells import faster, few, label, memory, times
from benchmarks.results import Case, Results

SUITES_HERE = ("linear", "layouts", "softmax", "overhead", "train")
"""Those with a table of their own, in this order."""
SIZES_HERE = ("linear", "train")
"""Those of them whose memory is not that of ``rows`` once more."""
PEERS = ("cross_entropy", "liger", "quack", "compiled", "official")
"""Columns of the first table, of those that have figures."""
TELLING = {(4096, 1000), (1024, 32000), (512, 128256), (65536, 10), (8192, 32768), (8192, 131072)}
"""Shapes of the first table; others appear in it where the library is not the fastest."""
PLOTS = ("rows-throughput.png", "rows-speedup.png")
COMMANDS = {"cpu": "make bench", "cuda": "make gpu-bench"}


def section(folders: dict[Path, list[Results]], beside: Path) -> str:
    """A part for each folder of results; links are relative to the folder ``beside``."""
    parts = [_part(runs, os.path.relpath(folder, beside)) for folder, runs in folders.items()]
    return "\n\n".join(parts) if parts else "There are no results yet."


def _part(runs: list[Results], folder: str) -> str:
    suites = {run.suite: run for run in runs}
    parts = [f"### {machine(runs[0])}"]
    if "rows" in suites:
        parts += _rows(suites["rows"], folder)
    for name in SUITES_HERE:
        if name in suites:
            parts += _suite(suites[name])
    return "\n\n".join([*parts, _provenance(runs, folder)])


def _rows(results: Results, folder: str) -> list[str]:
    cases = whole_steps(typical(results.of_table("main")))
    sizes = with_memory(results)
    return [
        *([_introduction(results, cases), _main(results, cases)] if cases else []),
        *faster(cases),
        *[f"![{p.title}]({folder}/{p.name})" for p in planned(results) if p.name in PLOTS],
        *(["**Peak extra memory**, gradient included:", memory(few(sizes))] if sizes else []),
    ]


def _introduction(results: Results, cases: list[Case]) -> str:
    first = cases[0]
    roofline = first[first.roofline or ""]
    facts = ["**Loss and gradient of ANL-CE**: median milliseconds; (n x): over anl_kernels."]
    if roofline.error is None:
        facts.append(f"Of the roofline: the least possible time ({roofline.label}) over ours.")
    facts.append(f"Logits of sigma {first.problem.sigma:g}.")
    if other := _other_regime(results, first):
        facts.append(
            f"Times are with the {first.regime} allocator; the factor after the slash is with "
            f"the {other.regime} one, which keeps freed memory mapped."
        )
    return " ".join(facts)


def _main(results: Results, cases: list[Case]) -> str:
    shown = [c for c in cases if _is_telling(c, _other_regime(results, c))] or cases
    names = [name for name in PEERS if any(case[name].milliseconds for case in shown)]
    labels = [label(cases, name) for name in names]
    headings = ["logits", "dtype", label(cases, cases[0].ours), "of the roofline", *labels]
    return table(headings, [_main_row(results, case, names) for case in shown])


def _main_row(results: Results, case: Case, names: Iterable[str]) -> list[str]:
    ours, other = case[case.ours], _other_regime(results, case)
    share = case.share_of_roofline(ours)
    return [
        case.problem.shape + (" (disturbed)" if case.disturbed else ""),
        case.problem.dtype,
        number(ours.milliseconds.median) if ours.milliseconds else "-",
        f"{share:.0%}" if share else "-",
        *(_against(case, other, name) for name in names),
    ]


def _against(case: Case, other: Case | None, name: str) -> str:
    """A peer's time, its factor, and its factor in the other regime."""
    measured = case[name]
    if measured.milliseconds is None:
        return "-"
    factors = [c.over_ours(c[name]) for c in (case, other) if c]
    text = " / ".join(f"{number(factor)} x" for factor in factors if factor)
    return f"{number(measured.milliseconds.median)} ({text})"


def _other_regime(results: Results, case: Case) -> Case | None:
    """The same case with the other allocator, if it was measured."""
    for other in results.of_table(case.table):
        alike = (other.problem, other.backend) == (case.problem, case.backend)
        if alike and other.regime != case.regime:
            return other
    return None


def _is_telling(case: Case, other: Case | None) -> bool:
    shape = case.problem.rows, case.problem.classes
    return shape in TELLING or any(overtaking(c) for c in (case, other) if c)


def _suite(results: Results) -> list[str]:
    """The first table of times and, if it says more, the first of memory."""
    tables = [typical(results.of_table(name)) for name in dict.fromkeys(map(_table, results.cases))]
    timed = next(filter(_has_times, tables), None)
    sized = next(filter(_has_sizes, tables), None) if results.suite in SIZES_HERE else None
    return [*(_timed(results, timed) if timed else []), *(_sized(results, sized) if sized else [])]


def _timed(results: Results, cases: list[Case]) -> list[str]:
    unit, body = times(few(cases))
    regime = f"; {cases[0].regime} allocator" if results.device == "cpu" else ""
    title = heading(results, cases[0].table)
    return [f"**{title}**: median {unit} (n x: over anl_kernels{regime}):", body, *faster(cases)]


def _sized(results: Results, cases: list[Case]) -> list[str]:
    title = heading(results, cases[0].table)
    return [f"**{title}**, peak extra memory (n x: over the logits):", memory(few(cases))]


def _table(case: Case) -> str:
    return case.table


def _has_times(cases: list[Case]) -> bool:
    return any(m.milliseconds for case in cases for m in case.measurements)


def _has_sizes(cases: list[Case]) -> bool:
    return any("logits" in m.ratios for case in cases for m in case.measurements)


def _provenance(runs: list[Results], folder: str) -> str:
    first = runs[0]
    versions = first.environment["versions"]
    days = sorted({run.created[:10] for run in runs})
    commits = dict.fromkeys(commit(run) for run in runs)
    return (
        f"Measured {' to '.join(dict.fromkeys([days[0], days[-1]]))} on {machine(first)}: torch "
        f"{versions['torch']}, Python {versions['python']}, commit {', '.join(commits)}. All "
        f"figures and plots are in [{folder}]({folder}); `{COMMANDS[first.device]}` makes them "
        "anew."
    )
