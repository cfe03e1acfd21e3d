"""Is the library right? No figure is reported unless it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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
CHUNK_ELEMENTS = 1 << 26
"""Logits whose truth is computed at a time: eager float64 takes hundreds of bytes for each."""

Values = tuple[Tensor, Tensor]
"""A loss and its gradient."""


def check_anl(problem: Problem, backend: str = "auto") -> list[Check]:
    """Both forms of ANL-CE against the official formula in float64."""
    inputs = make_inputs(problem, copies=1)
    name = f"ANL-CE {_name(problem, backend)} x{problem.scale:g}"
    with ak.use_backend(backend):
        ours = {
            name: _loss_and_grad(ak.anl, inputs.logits[0], inputs.target),
            f"{name}, in place": _loss_and_grad_inplace(inputs),
        }
    return _compare(ours, official_anl, inputs)


def check_term(term: Term, problem: Problem, backend: str = "auto") -> list[Check]:
    """A term against its definition in float64."""
    inputs, criterion = make_inputs(problem, copies=1), criterion_of(term)
    with ak.use_backend(backend):
        ours = _loss_and_grad(criterion, inputs.logits[0], inputs.target)
    with ak.use_backend("reference"):
        return _compare({f"{term!r} {_name(problem, backend)}": ours}, criterion, inputs)


@dataclass
class Deviation:
    """Distance of a tensor from the truth, gathered from parts of it."""

    squared: float = 0.0
    truth_squared: float = 0.0

    def add(self, value: Tensor, truth: Tensor) -> None:
        """One more part."""
        self.squared += (value.double() - truth).square().sum().item()
        self.truth_squared += truth.square().sum().item()

    @property
    def relative(self) -> float:
        """Norm of the difference over the norm of the truth; NaN where there is no truth."""
        return math.sqrt(self.squared / self.truth_squared) if self.truth_squared else math.nan


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    deviation = Deviation()
    deviation.add(actual, truth)
    return deviation.relative


def _name(problem: Problem, backend: str) -> str:
    named = "" if backend == "auto" else f" on {backend}"
    return f"{problem.rows} x {problem.classes} {problem.dtype}{named}"


def _compare(ours: Mapping[str, Values], criterion: Criterion, inputs: Inputs) -> list[Check]:
    """Hold values to the float64 truth of a mean over rows, all of them, some at a time."""
    logits, target = inputs.logits[0], inputs.target
    true_loss = eager_loss = torch.zeros((), dtype=torch.float64, device=logits.device)
    rounding, eager = Deviation(), Deviation()
    gradients = {name: Deviation() for name in ours}
    for rows in _chunks(logits):
        share = len(target[rows]) / len(target)
        loss, grad = _loss_and_grad(criterion, logits[rows].double(), target[rows], share)
        loss32, grad32 = _loss_and_grad(criterion, logits[rows].float(), target[rows], share)
        true_loss, eager_loss = true_loss + loss, eager_loss + loss32
        rounding.add(grad.to(logits.dtype), grad)
        eager.add(grad32, grad)
        for name, (_, ours_grad) in ours.items():
            gradients[name].add(ours_grad[rows], grad)
    by_eager = relative_error(eager_loss, true_loss)
    checks = []
    for name, (loss, _) in ours.items():
        by_rounding = relative_error(true_loss.to(loss.dtype), true_loss)
        error = relative_error(loss, true_loss)
        checks.append(Check(f"{name}: loss", error, _bound(by_rounding, by_eager)))
        bound = _bound(rounding.relative, eager.relative)
        checks.append(Check(f"{name}: gradient", gradients[name].relative, bound))
    return checks


def _bound(by_rounding: float, by_eager: float) -> float:
    return EPSILON + max(ROUNDING * by_rounding, EAGER * by_eager)


def _chunks(logits: Tensor) -> Iterator[slice]:
    step = max(1, CHUNK_ELEMENTS // logits.shape[1])
    return (slice(start, start + step) for start in range(0, logits.shape[0], step))


def _loss_and_grad(
    criterion: Criterion, logits: Tensor, target: Tensor, share: float = 1.0
) -> Values:
    logits = logits.detach().requires_grad_()
    loss = criterion(logits, target)
    if share != 1:
        loss = share * loss
    (grad,) = torch.autograd.grad(loss, logits)
    return loss.detach(), grad


def _loss_and_grad_inplace(inputs: Inputs) -> Values:
    logits = inputs.logits[0].clone()  # computed, as inplace=True demands
    loss = ak.anl(logits, inputs.target, inplace=True)
    (grad,) = torch.autograd.grad(loss, logits)
    return loss.detach(), grad
