"""What the jobs of the suite do, in the process of a job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch

from anl_kernels.terms import REGISTRY, Term
from benchmarks.bystanders import watch
from benchmarks.gate import check_anl, check_term
from benchmarks.inputs import Inputs, Problem, make_inputs
from benchmarks.memory import peak_growth
from benchmarks.results import Case, Check, Measurement
from benchmarks.subjects import SUBJECTS, Subject, criterion_of, loss_and_gradient
from benchmarks.timing import Budget, Prepare, interleave, measurements, one_line

Shape = tuple[int, int]

BASELINES = ("ours", "copy", "cross_entropy")
"""Subjects that the times of the others are divided by."""
GATE_ELEMENTS = 1 << 20
"""The float64 truth of all the rows would take longer than the measurement."""
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
    shapes: list[Shape], dtypes: list[str], scales: list[float], term_shapes: list[Shape]
) -> Iterator[Check]:
    """Compare with float64 what the other jobs will time, on fewer rows."""
    for dtype in dtypes:
        for shape in shapes:
            for scale in scales:
                yield from check_anl(_problem(_fewer_rows(shape), dtype, scale))
        for shape in term_shapes:
            for term in term_instances().values():
                yield from check_term(term, _problem(_fewer_rows(shape), dtype))


def main(
    regime: str,
    shape: Shape,
    dtypes: list[str],
    scales: list[float],
    subjects: list[str],
    budget: dict[str, Any],
) -> Iterator[Case]:
    """ANL-CE and its peers."""
    chosen = {name: SUBJECTS[name] for name in subjects}
    for dtype in dtypes:
        for scale in scales:
            problem = _problem(shape, dtype, scale)
            yield _timed_case("main", regime, problem, chosen, BASELINES, Budget(**budget))


def terms(regime: str, shape: Shape, dtypes: list[str], budget: dict[str, Any]) -> Iterator[Case]:
    """Every term next to ANL-CE."""
    subjects = {"ours": SUBJECTS["ours"]} | {
        name: Subject(repr(term), partial(loss_and_gradient, criterion_of(term)))
        for name, term in term_instances().items()
    }
    for dtype in dtypes:
        problem = _problem(shape, dtype)
        yield _timed_case("terms", regime, problem, subjects, ("ours",), Budget(**budget))


def memory(regime: str, shape: Shape, dtype: str, subject: str) -> Iterator[Case]:
    """Peak extra memory of one subject, the gradient included, over the logits' size."""
    problem = _problem(shape, dtype)
    label, build = SUBJECTS[subject].label, SUBJECTS[subject].build
    try:
        # What the first call of anything maps, threads and code, is not the logits' business.
        build(make_inputs(_problem((64, 128), dtype), copies=1))(0)()
        growth = peak_growth(build(make_inputs(problem, copies=1))(0))
        ratios = {"logits": growth / problem.logits_bytes}
        measured = Measurement(subject, label, ratios=ratios)
    except Exception as error:
        measured = Measurement(subject, label, error=one_line(error))
    yield _case("memory", regime, problem, [measured])


def _problem(shape: Iterable[int], dtype: str, scale: float = 3.0) -> Problem:
    rows, classes = shape
    return Problem(rows, classes, getattr(torch, dtype), scale)


def _fewer_rows(shape: Shape) -> Shape:
    rows, classes = shape
    return min(rows, max(GATE_ROWS, GATE_ELEMENTS // classes)), classes


def _timed_case(
    table: str,
    regime: str,
    problem: Problem,
    subjects: Mapping[str, Subject],
    baselines: tuple[str, ...],
    budget: Budget,
) -> Case:
    inputs = make_inputs(problem)
    prepares = {name: _late(subject, inputs) for name, subject in subjects.items()}
    taken_by_others = watch()
    samples = interleave(prepares, len(inputs.logits), budget)
    share = taken_by_others and taken_by_others()
    labels = {name: subject.label for name, subject in subjects.items()}
    return _case(table, regime, problem, measurements(samples, labels, baselines), share)


def _late(subject: Subject, inputs: Inputs) -> Prepare:
    """Build the subject when it is first prepared, where an error becomes its row."""
    build = cache(lambda: subject.build(inputs))
    return lambda i: build()(i)


def _case(
    table: str,
    regime: str,
    problem: Problem,
    measured: list[Measurement],
    taken_by_others: float | None = None,
) -> Case:
    return Case(
        table=table,
        regime=regime,
        device="cpu",
        rows=problem.rows,
        classes=problem.classes,
        dtype=str(problem.dtype).removeprefix("torch."),
        scale=problem.scale,
        measurements=measured,
        taken_by_others=taken_by_others,
    )
