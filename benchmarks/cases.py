"""What the jobs of every suite do, in the process of a job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch

import anl_kernels as ak
from anl_kernels.backends.selection import choose_backend
from benchmarks.devices import DEVICES
from benchmarks.gate import gate
from benchmarks.inputs import Inputs, make_inputs
from benchmarks.memory import peak_growth
from benchmarks.problems import Problem
from benchmarks.results import Case, Check, Measurement
from benchmarks.subjects import SUBJECTS, Subject, on_backend
from benchmarks.suite import Spec
from benchmarks.timing import Budget, Prepare, interleave, measurements, one_line

BASELINES = ("ours", "ours_inplace", "cross_entropy")
"""Subjects that the times of the others are divided by, beside the suite's own and the roof."""


def check(specs: list[dict[str, Any]]) -> Iterator[Check]:
    """The gate before the specs."""
    return gate(map(spec_from, specs))


def time(specs: list[dict[str, Any]], budget: dict[str, Any]) -> Iterator[Case]:
    """Subjects side by side."""
    return (timed(spec_from(spec), Budget(**budget)) for spec in specs)


def memory(specs: list[dict[str, Any]]) -> Iterator[Case]:
    """Peak extra memory of a step, the gradient included, over the logits' size.

    Of the CPU's, which only a fresh process can tell: one spec of one subject.
    """
    (spec,) = map(spec_from, specs)
    (name,) = spec.subjects
    subject, problem = subject_of(spec, name), spec.problem
    try:
        prepare = subject.build(make_inputs(problem, copies=1))
        # What a first call maps, threads and code and a compiler, is not the logits' business, and
        # the memory that the library keeps for its next gradient would be found to be there.
        prepare(0)()
        ak.empty_cpu_cache()
        ratios = {"logits": peak_growth(prepare(0)) / problem.logits_bytes}
        measured = Measurement(name, subject.label, ratios=ratios)
    except Exception as error:
        measured = Measurement(name, subject.label, error=one_line(error))
    yield case_of(spec, [measured])


def spec_from(record: dict[str, Any]) -> Spec:
    """A spec out of its JSON object."""
    problem = record["problem"] | {"grid": tuple(record["problem"]["grid"])}
    return Spec(**record | {"problem": Problem(**problem), "subjects": tuple(record["subjects"])})


def case_of(spec: Spec, measured: list[Measurement]) -> Case:
    """The case of a spec."""
    return Case(
        table=spec.table,
        regime=spec.regime,
        problem=spec.problem,
        measurements=measured,
        roof=spec.roof,
        floor=spec.floor,
        backend=spec.backend,
        ours=spec.ours,
    )


def timed(spec: Spec, budget: Budget) -> Case:
    """The spec's measurements; where the inputs do not fit, each says so."""
    subjects = {name: subject_of(spec, name) for name in spec.subjects}
    labels = {name: subject.label for name, subject in subjects.items()}
    try:
        inputs = make_inputs(spec.problem)
    except torch.OutOfMemoryError as error:
        reason = f"the inputs do not fit: {one_line(error)}"
        return case_of(spec, [Measurement(name, labels[name], error=reason) for name in labels])
    prepares = {name: _late(subject, inputs) for name, subject in subjects.items()}
    device = DEVICES[spec.problem.device]
    clock = device.host_clock() if spec.host else device.clock()
    samples, taken_by_others = interleave(prepares, len(inputs.leaves), budget, clock)
    baselines = tuple(dict.fromkeys((*BASELINES, spec.ours, *([spec.roof] if spec.roof else []))))
    measured = measurements(samples, labels, baselines)
    measured = [_with_memory(m, prepares[m.subject], spec.problem) for m in measured]
    return replace(case_of(spec, measured), taken_by_others=taken_by_others, auto=_auto(inputs))


def subject_of(spec: Spec, name: str) -> Subject:
    """The subject, on the backend of the spec."""
    subject = SUBJECTS[name]
    if spec.backend == "auto":
        return subject
    return replace(subject, build=lambda inputs: on_backend(spec.backend, subject.build(inputs)))


def _auto(inputs: Inputs) -> str | None:
    """What "auto" takes, where logits are given."""
    if inputs.problem.hidden is not None:
        return None
    logits = inputs.logits[0]
    return choose_backend(logits.device.type, None, logits, dim=1)


def _late(subject: Subject, inputs: Inputs) -> Prepare:
    """Build the subject when it is first prepared, where an error becomes its row."""
    build = cache(lambda: subject.build(inputs))
    return lambda i: build()(i)


def _with_memory(measured: Measurement, prepare: Prepare, problem: Problem) -> Measurement:
    """Add the peak extra memory of one more step, where a warm process can tell it."""
    growth_of = DEVICES[problem.device].peak_growth
    if growth_of is None or measured.error:
        return measured
    growth = growth_of(prepare(0))
    return replace(measured, ratios=measured.ratios | {"logits": growth / problem.logits_bytes})
