"""What the jobs of every suite do, in the process of a job."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch

import anl_kernels as ak
from anl_kernels.backends.choice import choose_backend
from benchmarks.clocks import OwnClock
from benchmarks.contenders import CONTENDERS, Contender, on_backend
from benchmarks.devices import DEVICES
from benchmarks.gate import gate
from benchmarks.inputs import Inputs, make_inputs
from benchmarks.memory import peak_growth
from benchmarks.problems import Problem
from benchmarks.results import Case, Check, Measurement
from benchmarks.suite import Spec
from benchmarks.timing import Budget, Prepare, interleave, measurements, one_line

BASELINES = ("ours", "ours_inplace", "cross_entropy", "compiled_cross_entropy")
"""Contenders that others' times are divided by, beside the suite's own and the roofline."""


def check(specs: list[dict[str, Any]]) -> Iterator[Check]:
    """The gate before the specs."""
    return gate(map(spec_from, specs))


def time(specs: list[dict[str, Any]], budget: dict[str, Any]) -> Iterator[Case]:
    """Contenders side by side."""
    return (timed(spec_from(spec), Budget(**budget)) for spec in specs)


def memory(specs: list[dict[str, Any]]) -> Iterator[Case]:
    """Peak extra memory of a step, the gradient included, over the logits' size.

    Of the CPU's, which only a fresh process can tell: one spec of one contender.
    """
    (spec,) = map(spec_from, specs)
    (name,) = spec.contenders
    contender, problem = contender_of(spec, name), spec.problem
    try:
        prepare = contender.build(make_inputs(problem, copies=1))
        # What first calls map, threads and code and a compiler, is not the logits' business, and
        # the memory that the library keeps for its next gradient would be found to be there.
        prepare(0)()
        ak.empty_cpu_cache()
        ratios = {"logits": peak_growth(prepare(0)) / problem.logits_bytes}
        measured = Measurement(name, contender.label, ratios=ratios)
    except Exception as error:
        measured = Measurement(name, contender.label, error=one_line(error))
    yield case_of(spec, [measured])


def spec_from(record: dict[str, Any]) -> Spec:
    """A spec out of its JSON object."""
    problem = record["problem"] | {"grid": tuple(record["problem"]["grid"])}
    return Spec(
        **record | {"problem": Problem(**problem), "contenders": tuple(record["contenders"])}
    )


def case_of(spec: Spec, measured: list[Measurement]) -> Case:
    """The case of a spec."""
    return Case(
        table=spec.table,
        regime=spec.regime,
        problem=spec.problem,
        measurements=measured,
        roofline=spec.roofline,
        floor=spec.floor,
        backend=spec.backend,
        ours=spec.ours,
    )


def timed(spec: Spec, budget: Budget) -> Case:
    """The spec's measurements; where the inputs do not fit, each says so."""
    contenders = {name: contender_of(spec, name) for name in spec.contenders}
    labels = {name: contender.label for name, contender in contenders.items()}
    try:
        inputs = make_inputs(spec.problem)
    except torch.OutOfMemoryError as error:
        reason = f"the inputs do not fit: {one_line(error)}"
        return case_of(spec, [Measurement(name, labels[name], error=reason) for name in labels])
    prepares = {name: _late(contender, inputs) for name, contender in contenders.items()}
    device = DEVICES[spec.problem.device]
    clocks = {"device": device.clock, "host": device.host_clock, "own": OwnClock}
    if spec.rounds:
        budget = Budget(math.inf, spec.rounds)
    samples, taken_by_others = interleave(
        prepares, len(inputs.leaves), budget, clocks[spec.clock]()
    )
    baselines = tuple(
        dict.fromkeys((*BASELINES, spec.ours, *([spec.roofline] if spec.roofline else [])))
    )
    measured = measurements(samples, labels, baselines)
    measured = [_with_memory(m, prepares[m.contender], spec.problem) for m in measured]
    return replace(case_of(spec, measured), taken_by_others=taken_by_others, auto=_auto(inputs))


def contender_of(spec: Spec, name: str) -> Contender:
    """The contender, on the backend of the spec."""
    contender = CONTENDERS[name]
    if spec.backend == "auto":
        return contender
    return replace(
        contender, build=lambda inputs: on_backend(spec.backend, contender.build(inputs))
    )


def _auto(inputs: Inputs) -> str | None:
    """What "auto" takes, where logits are given."""
    if inputs.problem.hidden is not None:
        return None
    return choose_backend(inputs.logits[0])


def _late(contender: Contender, inputs: Inputs) -> Prepare:
    """Build the contender when it is first prepared, where an error becomes its row."""
    build = cache(lambda: contender.build(inputs))
    return lambda i: build()(i)


def _with_memory(measured: Measurement, prepare: Prepare, problem: Problem) -> Measurement:
    """Add the peak extra memory of one more step, where a warm process can tell it."""
    growth_of = DEVICES[problem.device].peak_growth
    if growth_of is None or measured.error:
        return measured
    growth = growth_of(prepare(0))
    return replace(measured, ratios=measured.ratios | {"logits": growth / problem.logits_bytes})
