"""What a subject is, and the two ways to give it logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import anl_kernels as ak
from anl_kernels.terms import Term
from benchmarks.clocks import Step
from benchmarks.inputs import Inputs
from benchmarks.timing import Prepare

Criterion = Callable[[Tensor, Tensor], Tensor]
Build = Callable[[Inputs], Prepare]


@dataclass(frozen=True)
class Subject:
    """Something to measure; ``build`` may raise, which is what its row then says."""

    label: str
    build: Build
    devices: tuple[str, ...] = ("cpu", "cuda")
    """Where it is measured unless one asks otherwise."""
    backend: str | None = None
    """The library's that it runs on; None if it is not the library."""


SUBJECTS: dict[str, Subject] = {}


def subject(label: str, *devices: str, backend: str | None = None) -> Callable[[Build], Build]:
    """Register the decorated function, by its name."""

    def register(build: Build) -> Build:
        SUBJECTS[build.__name__] = Subject(label, build, devices or ("cpu", "cuda"), backend)
        return build

    return register


def loss_and_gradient(criterion: Criterion, inputs: Inputs) -> Prepare:
    """Forward and backward, as a training step does them to the logits."""

    def prepare(i: int) -> Step:
        logits = inputs.logits[i]

        def step() -> None:
            criterion(logits, inputs.target).backward()
            # Timed, and here rather than before the forward pass, so that each subject pays for
            # returning its own gradient to the system.
            logits.grad = None

        return step

    return prepare


def loss_over_gradient(criterion: Criterion, inputs: Inputs) -> Prepare:
    """Forward and backward of a criterion that leaves the gradient where the logits were.

    The logits have to be there again for the next step; that is done outside the timed steps.
    """

    def prepare(i: int) -> Step:
        anchor = torch.zeros((), requires_grad=True)
        logits = _Layer.apply(anchor, inputs.borrow(i))
        return lambda: criterion(logits, inputs.target).backward()

    return prepare


def criterion_of(term: Term) -> Criterion:
    """The library's loss of one term."""
    return partial(ak.robust_loss, terms=term)  # type: ignore[return-value]


def on_backend(backend: str, prepare: Prepare) -> Prepare:
    """Run the steps on one backend of the library; the switch costs the host a microsecond or two.

    Where the backend cannot run, the first step raises the reason.
    """

    def switched(i: int) -> Step:
        step = prepare(i)

        def run() -> None:
            with ak.use_backend(backend):
                step()

        return run

    return switched


class _Layer(torch.autograd.Function):
    """Stands for the layer that made the logits, at no cost in either direction."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, logits: Tensor) -> Tensor:
        return logits.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, None]:
        return None, None
