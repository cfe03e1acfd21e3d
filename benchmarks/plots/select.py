"""Which cases of a table a figure or a summary shows."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from benchmarks.problems import Problem
from benchmarks.results import Case, Measurement, Results

LATENCY_ELEMENTS = 10_000
"""Up to this size a case measures the way to the kernel, not the kernel."""

PREFERRED: list[tuple[Callable[[Case], Any], Any]] = [
    (lambda case: case.regime, "default"),
    (lambda case: case.problem.sigma, 3.0),
    (lambda case: case.backend, "auto"),
]
"""What users meet first; where there is no such case, the first case says what is shown."""


FIRST = (
    "copy", "ours_inplace", "triton", "cuda", "cross_entropy", "compiled", "official", "liger",
    "quack", "careful", "compiled_official",
)  # fmt: skip
"""Those that stay if a plot cannot show all; others follow in the order of the run."""


def typical(cases: list[Case]) -> list[Case]:
    """The cases of one allocator regime, one sigma and one backend."""
    for of, wanted in PREFERRED:
        cases = _alike(cases, of, wanted)
    return cases


def whole_steps(cases: list[Case]) -> list[Case]:
    """Those of forward and backward together, if there are any."""
    return _alike(cases, lambda case: case.problem.phase, "both")


def in_view(cases: list[Case], limit: int) -> tuple[list[Case], list[str]]:
    """The cases with as many contenders as can be read, and the labels of those left out.

    Never left out before others: the library itself, and who is faster than it somewhere.
    """
    labels = {m.contender: m.label for c in cases for m in c.measurements if m.error is None}
    ours = {case.ours for case in cases}
    ahead = {m.contender for case in cases for m in overtaking(case)}

    def rank(name: str) -> tuple[bool, bool, int]:
        place = FIRST.index(name) if name in FIRST else len(FIRST)
        return name not in ours, name not in ahead, place

    ranked = sorted(labels, key=rank)
    kept = [only(case, ranked[:limit]) for case in cases]
    return kept, [labels[name] for name in ranked[limit:]]


def only(case: Case, names: Collection[str]) -> Case:
    """The case with these contenders alone."""
    return replace(case, measurements=[m for m in case.measurements if m.contender in names])


def overtaking(case: Case) -> list[Measurement]:
    """The peers that are faster than the library."""
    return [m for m in peers(case) if (case.over_ours(m) or 1.0) < 1]


def time_unit(cases: list[Case]) -> tuple[float, str]:
    """The unit that the library's times are told in, and how many are a millisecond."""
    spreads = [case[case.ours].milliseconds for case in cases]
    medians = [spread.median for spread in spreads if spread]
    return (1e3, "µs") if medians and max(medians) < 1 else (1.0, "ms")


def by_dtype(cases: list[Case]) -> dict[str, list[Case]]:
    """In the order of the first case of each."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.problem.dtype, []).append(case)
    return found


def is_small(problem: Problem) -> bool:
    """Whether its time is overhead."""
    return problem.rows * problem.classes <= LATENCY_ELEMENTS


def is_library(measurement: Measurement) -> bool:
    """Whether the contender is the library, in any of its forms."""
    return measurement.label.startswith("anl_kernels")


def peers(case: Case) -> list[Measurement]:
    """Other people's contenders that have figures, without the roofline."""
    return [
        m
        for m in case.measurements
        if m.error is None and m.contender not in (case.roofline, case.ours) and not is_library(m)
    ]


def with_memory(results: Results) -> list[Case]:
    """The cases of loss and gradient whose memory is known: where it is measured apart, those."""
    cases = results.of_table("memory") or results.of_table("main")
    return [c for c in typical(cases) if any("logits" in m.ratios for m in c.measurements)]


def _alike(cases: list[Case], of: Callable[[Case], Any], wanted: Any) -> list[Case]:
    if not cases:
        return []
    value = wanted if any(of(case) == wanted for case in cases) else of(cases[0])
    return [case for case in cases if of(case) == value]
