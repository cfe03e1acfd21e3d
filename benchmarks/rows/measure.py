"""What the jobs of the suite do, in the process of a job."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from anl_kernels.terms import REGISTRY, Term
from benchmarks.gate import check_anl, check_term
from benchmarks.inputs import make_inputs
from benchmarks.memory import peak_growth
from benchmarks.results import Case, Check, Measurement
from benchmarks.rows.cases import new_case, problem_of, timed
from benchmarks.subjects import (
    SUBJECTS,
    Subject,
    criterion_of,
    loss_and_gradient,
    on_backend,
)
from benchmarks.timing import Budget, one_line

Shape = tuple[int, int]

BASELINES = {
    "cpu": ("ours", "copy", "cross_entropy"),
    "cuda": ("ours", "ours_inplace", "copy", "cross_entropy"),
}
"""Subjects that the times of the others are divided by."""
GATE_ELEMENTS = 1 << 20
"""On a CPU the float64 truth of all the rows would take longer than the measurement."""
GATE_ROWS = 4
"""... but never fewer: enough for every thread to have one, as a rule."""
PARAMETERS: dict[str, dict[str, float]] = {
    "AGCE": {"a": 6.0, "q": 1.5},
    "AUL": {"a": 6.3, "q": 1.5},
    "AEL": {"a": 5.0},
    "AMSE": {"a": 30.0},
}
"""Of terms that have no defaults: the papers', for CIFAR-10."""


def term_instances() -> dict[str, Term]:
    """One instance of every registered term."""
    return {name: term(**PARAMETERS.get(name, {})) for name, term in REGISTRY.items()}


def gate(
    shapes: list[Shape],
    dtypes: list[str],
    scales: list[float],
    term_shapes: list[Shape],
    term_dtypes: Iterable[str] = (),
    device: str = "cpu",
    backends: Iterable[str] = ("auto",),
    term_backends: Iterable[str] = ("auto",),
) -> Iterator[Check]:
    """Compare with float64 what the other jobs will time: on a CPU on fewer rows."""
    sized = _fewer_rows if device == "cpu" else tuple
    for dtype in dtypes:
        for shape in shapes:
            for scale in scales:
                problem = problem_of(sized(shape), dtype, scale, device)
                for backend in backends:
                    yield from _fitting(f"ANL-CE {shape}", partial(check_anl, problem, backend))
    for dtype in term_dtypes:
        for shape in term_shapes:
            problem = problem_of(sized(shape), dtype, device=device)
            for backend in term_backends:
                for term in term_instances().values():
                    check = partial(check_term, term, problem, backend)
                    yield from _fitting(f"{term!r} {shape}", check)


def main(
    regime: str,
    shape: Shape,
    dtypes: list[str],
    scales: list[float],
    subjects: list[str],
    budget: dict[str, Any],
    device: str = "cpu",
) -> Iterator[Case]:
    """ANL-CE and its peers."""
    chosen = {name: SUBJECTS[name] for name in subjects}
    for dtype in dtypes:
        for scale in scales:
            problem = problem_of(shape, dtype, scale, device)
            case = new_case("main", regime, problem)
            yield timed(case, problem, chosen, BASELINES[device], Budget(**budget))


def terms(
    regime: str,
    shape: Shape,
    dtypes: list[str],
    budget: dict[str, Any],
    device: str = "cpu",
    backend: str = "auto",
) -> Iterator[Case]:
    """Every term next to ANL-CE."""
    subjects = {"ours": SUBJECTS["ours"]} | {
        name: Subject(repr(term), partial(loss_and_gradient, criterion_of(term)))
        for name, term in term_instances().items()
    }
    if backend != "auto":
        subjects = {name: _switched(subject, backend) for name, subject in subjects.items()}
    for dtype in dtypes:
        problem = problem_of(shape, dtype, device=device)
        case = replace(new_case("terms", regime, problem), backend=backend)
        yield timed(case, problem, subjects, ("ours",), Budget(**budget))


def memory(regime: str, shape: Shape, dtype: str, subject: str) -> Iterator[Case]:
    """Peak extra memory of one subject, the gradient included, over the logits' size."""
    problem = problem_of(shape, dtype)
    label, build = SUBJECTS[subject].label, SUBJECTS[subject].build
    try:
        # What the first call of anything maps, threads and code, is not the logits' business.
        build(make_inputs(problem_of((64, 128), dtype), copies=1))(0)()
        growth = peak_growth(build(make_inputs(problem, copies=1))(0))
        ratios = {"logits": growth / problem.logits_bytes}
        measured = Measurement(subject, label, ratios=ratios)
    except Exception as error:
        measured = Measurement(subject, label, error=one_line(error))
    yield new_case("memory", regime, problem, [measured])


def _fitting(what: str, check: Callable[[], list[Check]]) -> list[Check]:
    """What cannot be checked is not right."""
    try:
        return check()
    except torch.OutOfMemoryError as error:
        return [Check(f"{what}: {one_line(error)}", math.nan, 0.0)]


def _fewer_rows(shape: Shape) -> Shape:
    rows, classes = shape
    return min(rows, max(GATE_ROWS, GATE_ELEMENTS // classes)), classes


def _switched(subject: Subject, backend: str) -> Subject:
    return replace(subject, build=lambda inputs: on_backend(backend, subject.build(inputs)))
