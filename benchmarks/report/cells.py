"""Small tables of cases for a reader who has little time."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.markdown import number, table
from benchmarks.plots.select import by_dtype, overtaking, time_unit
from benchmarks.results import Case, Measurement

COLUMNS = 5
"""Of cases in a table."""


def times(cases: list[Case]) -> tuple[str, str]:
    """The unit, and a table of medians with their factors over the library's."""
    factor, unit = time_unit(cases)

    def cell(case: Case, measurement: Measurement) -> str | None:
        if measurement.milliseconds is None:
            return None
        text = number(factor * measurement.milliseconds.median)
        over = case.over_ours(measurement)
        return f"{text} ({number(over)} x)" if over and measurement.contender != case.ours else text

    return unit, _by_contender(cases, cell)


def memory(cases: list[Case]) -> str:
    """A table of peak extra memory."""

    def cell(case: Case, measurement: Measurement) -> str | None:
        size, over = case.mebibytes(measurement), measurement.ratios.get("logits", 0.0)
        if size is None or measurement.contender == case.roofline:
            return None
        return f"{number(size)} MiB ({max(0.0, over):.2f} x)"

    return _by_contender(cases, cell)


def faster(cases: list[Case]) -> list[str]:
    """A sentence on who is faster than the library, and where; none if nobody is."""
    found: dict[str, list[tuple[float, str]]] = {}
    for case in cases:
        for m in [] if case.disturbed else overtaking(case):
            found.setdefault(m.label, []).append((case.over_ours(m) or 0.0, case.brief()))
    clauses = [f"{label} {_where(places, len(cases))}" for label, places in found.items()]
    return [f"Faster than anl_kernels: {'; '.join(clauses)}."] if clauses else []


def _where(places: list[tuple[float, str]], of: int) -> str:
    if len(places) > COLUMNS:
        factors = [number(over) for over in (min(places)[0], max(places)[0])]
        return f"in {len(places)} of {of} cases ({factors[0]} x to {factors[1]} x)"
    return "at " + ", ".join(f"{place} ({number(over)} x)" for over, place in places)


def few(cases: list[Case]) -> list[Case]:
    """So many that they fit beside each other: of the first dtype, spread over the sizes."""
    if len(cases) > COLUMNS:
        cases = next(iter(by_dtype(cases).values()))
    if len(cases) > COLUMNS:
        last = len(cases) - 1
        cases = [cases[round(i * last / (COLUMNS - 1))] for i in range(COLUMNS)]
    return cases


def label(cases: list[Case], name: str) -> str:
    """What a contender of the cases is called."""
    return next(m.label for case in cases for m in case.measurements if m.contender == name)


def _by_contender(cases: list[Case], cell: Callable[[Case, Measurement], str | None]) -> str:
    """Contenders downwards, cases across; without contenders that have no figures."""
    dtypes = {case.problem.dtype for case in cases}
    headings = [case.brief(dtype=len(dtypes) > 1) for case in cases]
    rows = []
    for name in dict.fromkeys(m.contender for case in cases for m in case.measurements):
        cells = [cell(case, case[name]) for case in cases]
        if any(cells):
            rows.append([label(cases, name), *(text or "-" for text in cells)])
    return table(["" if len(dtypes) > 1 else dtypes.pop(), *headings], rows)
