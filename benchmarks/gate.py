"""Is the library right? No figure is reported unless it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import anl_kernels as ak
from anl_kernels.backends.choice import BACKENDS, why_not
from benchmarks.contenders import CONTENDERS, Contender, Criterion
from benchmarks.inputs import Inputs, make_inputs
from benchmarks.problems import Problem
from benchmarks.results import Check
from benchmarks.suite import Spec
from benchmarks.timing import one_line

EPSILON = 5e-6
"""Some dozens of roundings of float32, in which every dtype is computed."""
ROUNDING = 1.05
"""Multiple of the error that rounding the true gradient to its dtype makes."""
EAGER = 2.0
"""Multiple of the error of the same formula in eager float32; it grows with K and sigma."""
CHUNK_ELEMENTS = 1 << 26
"""Logits whose truth is computed at a time: eager float64 takes hundreds of bytes for each."""
GATE_BYTES = 16 << 20
"""On a CPU the float64 truth of all the rows would take longer than the measurement. From 8 MiB on
the kernels write past the caches, which is to be checked as well."""
GATE_ROWS = 4
"""... but never fewer: enough for every thread to have one, as a rule."""

Values = tuple[Tensor, tuple[Tensor, ...]]
"""A loss and its gradients."""


def gate(specs: Iterable[Spec]) -> Iterator[Check]:
    """Compare with float64 what the specs will measure of the library: on a CPU on fewer rows."""
    done = set()
    for spec in specs:
        problem = checked(spec.problem)
        for contenders in _by_truth(spec):
            new = [one for one in contenders if (problem, one) not in done]
            done |= {(problem, one) for one in new}
            if new:
                yield from _fitting(problem, new)


def checked(problem: Problem) -> Problem:
    """What is compared: the whole step, and on a CPU fewer rows."""
    problem = replace(problem, phase="both")
    if problem.layers:  # Of a model it is the loss that is ours: on logits like the model's.
        problem = replace(problem, hidden=None, layers=0)
    if problem.device != "cpu":
        return problem
    row = problem.classes * problem.torch_dtype.itemsize
    most = max(GATE_ROWS, GATE_BYTES // row)
    if not problem.grid:
        return replace(problem, rows=min(problem.rows, most))
    # Fewer rows of pixels, as long as before.
    batch, height, *width = problem.grid
    batch = min(batch, 2)
    height = min(height, max(1, most // (batch * math.prod(width))))
    grid = (batch, height, *width)
    return replace(problem, grid=grid, rows=math.prod(grid))


@dataclass(frozen=True)
class Candidate:
    """A contender on a backend of the library."""

    name: str
    contender: Contender
    backend: str

    def __str__(self) -> str:
        return self.contender.label + ("" if self.backend == "auto" else f" on {self.backend}")


def _by_truth(spec: Spec) -> list[list[Candidate]]:
    """What can run of the library, together with what has to be equal to it."""
    found: dict[Criterion, list[Candidate]] = {}
    for name in spec.contenders:
        contender = CONTENDERS[name]
        backend = spec.backend if spec.backend != "auto" else contender.backend
        if contender.truth and backend and runs(backend):
            found.setdefault(contender.truth, []).append(Candidate(name, contender, backend))
    return list(found.values())


def runs(backend: str) -> bool:
    """Whether the library's backend can run here."""
    return backend == "auto" or (backend in BACKENDS and why_not(backend) is None)


def _fitting(problem: Problem, contenders: Sequence[Candidate]) -> list[Check]:
    """What cannot be checked is not right."""
    try:
        return _compare(problem, contenders)
    except Exception as error:  # out of memory, or refused
        names = ", ".join(map(str, contenders))
        return [Check(f"{names}, {problem}: {one_line(error)}", math.nan, 0.0)]


class Deviation:
    """Distance of tensors from the truth, gathered from parts of them."""

    def __init__(self) -> None:
        self._squared = 0.0
        self._truth_squared = 0.0

    def add(self, value: Tensor, truth: Tensor) -> None:
        """One more part."""
        self._squared += (value.double() - truth).square().sum().item()
        self._truth_squared += truth.square().sum().item()

    @property
    def relative(self) -> float:
        """Norm of the difference over the norm of the truth; NaN where there is no truth."""
        return math.sqrt(self._squared / self._truth_squared) if self._truth_squared else math.nan


class Truth:
    """A criterion in float64, and what eager PyTorch makes of it, some rows at a time.

    That in float32, or in the dtype of a result that rounds. The first leaf and the target are
    cut; the gradients of what all rows share are summed.
    """

    def __init__(self, contender: Contender, inputs: Inputs) -> None:
        assert contender.truth is not None
        self._criterion = contender.truth
        self._inputs = inputs
        self._dtype = inputs.leaves[0][0].dtype
        self._eager_dtype = self._dtype if contender.rounds else torch.float32
        self.loss = torch.zeros((), dtype=torch.float64, device=inputs.target.device)
        self.eager_loss = self.loss.clone()
        self.rounding, self.eager = ([Deviation() for _ in inputs.leaves[0]] for _ in range(2))

    def compare(self, ours: Sequence[tuple[Tensor, ...]]) -> list[list[Deviation]]:
        """How far gradients are from the truth: for each of ours, by leaf."""
        found = [[Deviation() for _ in gradients] for gradients in ours]
        shared: list[Tensor] = []
        for rows, (true, eager) in self._chunks():
            self._add(0, true[0], eager[0], found, [gradients[0][rows] for gradients in ours])
            terms = [term.double() for term in (*true[1:], *eager[1:])]
            shared = [a.add_(b) for a, b in zip(shared, terms, strict=True)] if shared else terms
        others = len(shared) // 2
        for k in range(others):
            of_leaf = [gradients[1 + k] for gradients in ours]
            self._add(1 + k, shared[k], shared[others + k], found, of_leaf)
        return found

    def _add(
        self,
        leaf: int,
        true: Tensor,
        eager: Tensor,
        found: list[list[Deviation]],
        ours: list[Tensor],
    ) -> None:
        self.rounding[leaf].add(true.to(self._dtype), true)
        self.eager[leaf].add(eager, true)
        for by_leaf, gradient in zip(found, ours, strict=True):
            by_leaf[leaf].add(gradient, true)

    def _chunks(self) -> Iterator[tuple[slice, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]]:
        leaves, target = self._inputs.leaves[0], self._inputs.target
        size = len(target)
        logits_of_one = self._inputs.problem.rows * self._inputs.problem.classes // size
        step = max(1, CHUNK_ELEMENTS // logits_of_one)
        for start in range(0, size, step):
            rows = slice(start, start + step)
            share = len(target[rows]) / size
            cut = (leaves[0][rows], *leaves[1:])
            double = [leaf.double() for leaf in cut]
            loss, true = loss_and_gradients(self._criterion, double, target[rows], share)
            lesser = [leaf.to(self._eager_dtype) for leaf in cut]
            eager_loss, eager = loss_and_gradients(self._criterion, lesser, target[rows], share)
            self.loss, self.eager_loss = self.loss + loss, self.eager_loss + eager_loss
            yield rows, (true, eager)


def _compare(problem: Problem, contenders: Sequence[Candidate]) -> list[Check]:
    inputs = make_inputs(problem, copies=1)
    ours = [_values(one, inputs) for one in contenders]
    truth = Truth(contenders[0].contender, inputs)
    deviations = truth.compare([gradients for _, gradients in ours])
    by_eager = relative_error(truth.eager_loss, truth.loss)
    checks = []
    for one, (loss, _), by_leaf in zip(contenders, ours, deviations, strict=True):
        by_rounding = relative_error(truth.loss.to(loss.dtype), truth.loss)
        error = relative_error(loss, truth.loss)
        checks.append(Check(f"{one}, {problem}: loss", error, _bound(by_rounding, by_eager)))
        of_each = zip(_leaves(problem), truth.rounding, truth.eager, by_leaf, strict=True)
        for of, rounding, eager, deviation in of_each:
            bound = _bound(rounding.relative, eager.relative)
            checks.append(Check(f"{one}, {problem}: gradient{of}", deviation.relative, bound))
    return checks


def _leaves(problem: Problem) -> tuple[str, ...]:
    """What tells the gradients of a check apart."""
    return ("",) if problem.hidden is None else (" of the hidden state", " of the weight")


def _values(one: Candidate, inputs: Inputs) -> Values:
    """Of logits that are computed, as in-place criteria demand."""
    assert one.contender.criterion is not None
    with ak.use_backend(one.backend):
        leaves = [leaf.detach() for leaf in inputs.leaves[0]]
        return loss_and_gradients(one.contender.criterion, leaves, inputs.target)


def loss_and_gradients(
    criterion: Criterion, leaves: Iterable[Tensor], target: Tensor, share: float = 1.0
) -> Values:
    """Of a mean over rows that are this share of all of them."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    loss = criterion(*(leaf.clone() for leaf in leaves), target)
    if share != 1:
        loss = share * loss
    return loss.detach(), torch.autograd.grad(loss, leaves)


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """Norm of the difference over the norm of the truth."""
    deviation = Deviation()
    deviation.add(actual, truth)
    return deviation.relative


def _bound(by_rounding: float, by_eager: float) -> float:
    return EPSILON + max(ROUNDING * by_rounding, EAGER * by_eager)
