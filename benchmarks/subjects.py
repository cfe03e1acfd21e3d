"""What is measured: loss and gradient of given logits, by the library and by its peers.

A subject is a function of the inputs that returns how to prepare a step (see timing.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import anl_kernels as ak
from anl_kernels.terms import Term
from benchmarks.inputs import Inputs
from benchmarks.peers import careful_anl, official_anl
from benchmarks.timing import Prepare, Step

Criterion = Callable[[Tensor, Tensor], Tensor]
Build = Callable[[Inputs], Prepare]


@dataclass(frozen=True)
class Subject:
    """Something to measure; ``build`` may raise, which is what its row then says."""

    label: str
    build: Build


SUBJECTS: dict[str, Subject] = {}


def subject(label: str) -> Callable[[Build], Build]:
    """Register the decorated function, by its name."""

    def register(build: Build) -> Build:
        SUBJECTS[build.__name__] = Subject(label, build)
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


def criterion_of(term: Term) -> Criterion:
    """The library's loss of one term."""
    return partial(ak.robust_loss, terms=term)  # type: ignore[return-value]


@subject("anl_kernels")
def ours(inputs: Inputs) -> Prepare:
    """The library, one pass."""
    return loss_and_gradient(ak.anl, inputs)


@subject("anl_kernels, inplace=True")
def ours_inplace(inputs: Inputs) -> Prepare:
    """The library with the gradient in the logits' memory: nothing is allocated.

    The logits have to be there again for the next step. That is done outside the timed step, and
    to the copy that the last step used, which leaves the one at hand as far from the caches as
    the other subjects find theirs.
    """
    last = 0

    def prepare(i: int) -> Step:
        nonlocal last
        inputs.spare[last].copy_(inputs.logits[last].detach())
        last = i
        logits = _Layer.apply(torch.zeros((), requires_grad=True), inputs.spare[i])
        return lambda: ak.anl(logits, inputs.target, inplace=True).backward()

    return prepare


@subject("copy of the logits")
def copy(inputs: Inputs) -> Prepare:
    """The roof: one read and one write of the logits' size, into memory that is mapped."""
    sources = [logits.detach() for logits in inputs.logits]
    return lambda i: lambda: inputs.spare[i].copy_(sources[i])


@subject("F.cross_entropy (does less)")
def cross_entropy(inputs: Inputs) -> Prepare:
    """PyTorch's plain cross entropy, which ANL-CE replaces."""
    return loss_and_gradient(F.cross_entropy, inputs)


@subject("torch.compile of ANL")
def compiled(inputs: Inputs) -> Prepare:
    """The compiler on a well-written ANL.

    In its default mode: on a CPU max-autotune concerns matrix products, of which there is none.
    """
    return loss_and_gradient(torch.compile(careful_anl, dynamic=False, fullgraph=True), inputs)


@subject("official ANL, eager")
def official(inputs: Inputs) -> Prepare:
    """The papers' way."""
    return loss_and_gradient(official_anl, inputs)


class _Layer(torch.autograd.Function):
    """Stands for the layer that made the logits, at no cost in either direction."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, logits: Tensor) -> Tensor:
        return logits.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, None]:
        return None, None
