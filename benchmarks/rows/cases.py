"""One case: a problem, the subjects that meet it, and what is measured of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache

import torch

from anl_kernels.backends.selection import choose_backend
from benchmarks.bystanders import watch
from benchmarks.devices import DEVICES
from benchmarks.inputs import Inputs, Problem, make_inputs
from benchmarks.results import Case, Measurement
from benchmarks.subjects import Subject
from benchmarks.timing import Budget, Prepare, interleave, measurements, one_line


def problem_of(
    shape: Iterable[int], dtype: str, scale: float = 3.0, device: str = "cpu"
) -> Problem:
    """A problem by the names of the command line."""
    rows, classes = shape
    return Problem(rows, classes, getattr(torch, dtype), scale, device)


def new_case(
    table: str, regime: str, problem: Problem, measured: Iterable[Measurement] = ()
) -> Case:
    """A case of a problem, with what was measured already."""
    return Case(
        table=table,
        regime=regime,
        device=problem.device,
        rows=problem.rows,
        classes=problem.classes,
        dtype=str(problem.dtype).removeprefix("torch."),
        scale=problem.scale,
        measurements=list(measured),
    )


def timed(
    case: Case,
    problem: Problem,
    subjects: Mapping[str, Subject],
    baselines: tuple[str, ...],
    budget: Budget,
) -> Case:
    """The case with its measurements; where the inputs do not fit, each says so."""
    try:
        inputs = make_inputs(problem)
    except torch.OutOfMemoryError as error:
        reason = f"the inputs do not fit: {one_line(error)}"
        missing = [Measurement(name, s.label, error=reason) for name, s in subjects.items()]
        return replace(case, measurements=missing)
    logits = inputs.logits[0]
    case = replace(case, auto=choose_backend(logits.device.type, None, logits, dim=1))
    prepares = {name: _late(subject, inputs) for name, subject in subjects.items()}
    taken_by_others = watch()
    samples = interleave(prepares, len(inputs.logits), budget, DEVICES[problem.device].clock())
    share = taken_by_others and taken_by_others()
    labels = {name: subject.label for name, subject in subjects.items()}
    measured = measurements(samples, labels, baselines)
    with_memory = [_with_memory(m, prepares[m.subject], problem) for m in measured]
    return replace(case, measurements=with_memory, taken_by_others=share)


def _late(subject: Subject, inputs: Inputs) -> Prepare:
    """Build the subject when it is first prepared, where an error becomes its row."""
    build = cache(lambda: subject.build(inputs))
    return lambda i: build()(i)


def _with_memory(measured: Measurement, prepare: Prepare, problem: Problem) -> Measurement:
    """Add the peak extra memory of one more step, where a warm process can tell it."""
    peak_growth = DEVICES[problem.device].peak_growth
    if peak_growth is None or measured.error:
        return measured
    growth = peak_growth(prepare(0))
    return replace(measured, ratios=measured.ratios | {"logits": growth / problem.logits_bytes})
