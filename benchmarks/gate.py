"""Is the library right? No figure is reported unless it is."""

from __future__ import annotations

import torch
from torch import Tensor

import anl_kernels as ak
from anl_kernels.terms import Term
from benchmarks.inputs import Inputs, Problem, make_inputs
from benchmarks.peers import official_anl
from benchmarks.results import Check
from benchmarks.subjects import Criterion, criterion_of

EPSILON = 5e-6
"""Some dozens of roundings of float32, in which every dtype is computed."""
ROUNDING = 1.05
"""Multiple of the error that rounding the true gradient to its dtype makes."""
EAGER = 2.0
"""Multiple of the error of the same formula in eager float32; it grows with K and sigma."""

Values = tuple[Tensor, Tensor]
"""A loss and its gradient."""


def check_anl(problem: Problem) -> list[Check]:
    """Both forms of ANL-CE against the official formula in float64."""
    inputs = make_inputs(problem, copies=1)
    truth, eager = _in_float64_and_float32(official_anl, inputs)
    name = f"ANL-CE {_name(problem)} x{problem.scale:g}"
    out_of_place = _loss_and_grad(ak.anl, inputs.logits[0], inputs.target)
    return [
        *_checks(name, out_of_place, truth, eager),
        *_checks(f"{name}, in place", _loss_and_grad_inplace(inputs), truth, eager),
    ]


def check_term(term: Term, problem: Problem) -> list[Check]:
    """A term against its definition in float64."""
    inputs, criterion = make_inputs(problem, copies=1), criterion_of(term)
    with ak.use_backend("reference"):
        truth, eager = _in_float64_and_float32(criterion, inputs)
    ours = _loss_and_grad(criterion, inputs.logits[0], inputs.target)
    return _checks(f"{term!r} {_name(problem)}", ours, truth, eager)


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    return ((actual.double() - truth).norm() / truth.norm()).item()


def _name(problem: Problem) -> str:
    return f"{problem.rows} x {problem.classes} {problem.dtype}"


def _checks(name: str, ours: Values, truth: Values, eager: Values) -> list[Check]:
    found = []
    for what, value, true, float32 in zip(("loss", "gradient"), ours, truth, eager, strict=True):
        rounding = relative_error(true.to(value.dtype), true)
        by_eager = relative_error(float32, true)
        bound = EPSILON + max(ROUNDING * rounding, EAGER * by_eager)
        found.append(Check(f"{name}: {what}", relative_error(value, true), bound))
    return found


def _in_float64_and_float32(criterion: Criterion, inputs: Inputs) -> tuple[Values, Values]:
    logits, target = inputs.logits[0], inputs.target
    return (
        _loss_and_grad(criterion, logits.double(), target),
        _loss_and_grad(criterion, logits.float(), target),
    )


def _loss_and_grad(criterion: Criterion, logits: Tensor, target: Tensor) -> Values:
    logits = logits.detach().requires_grad_()
    loss = criterion(logits, target)
    (grad,) = torch.autograd.grad(loss, logits)
    return loss.detach(), grad


def _loss_and_grad_inplace(inputs: Inputs) -> Values:
    logits = inputs.logits[0].clone()  # computed, as inplace=True demands
    loss = ak.anl(logits, inputs.target, inplace=True)
    (grad,) = torch.autograd.grad(loss, logits)
    return loss.detach(), grad
