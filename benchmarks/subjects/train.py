"""Training steps of one transformer, with this or that loss.

All subjects of a problem train the same model with the same optimiser, so that they differ in
their loss alone, take turns on equal terms, and do not fill the memory with models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.devices import DEVICES
from benchmarks.inputs import Inputs
from benchmarks.peers import careful_anl, official_anl_by_rows
from benchmarks.problems import Problem
from benchmarks.subjects.base import Criterion, compiled_alone, subject
from benchmarks.subjects.library import anl, anl_inplace
from benchmarks.timing import Prepare
from benchmarks.transformer import Transformer

BATCH = 8
"""Sequences; a problem's rows are the tokens of all of them."""
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Trainee:
    """A model and its optimiser, whose state is there from the start."""

    model: Transformer
    optimizer: torch.optim.Optimizer

    def logits(self, tokens: Tensor) -> Tensor:
        """A row for each token."""
        return self.model(tokens.view(BATCH, -1)).flatten(0, 1)

    def update(self) -> None:
        """Move the parameters, and release their gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@lru_cache(maxsize=1)
def trainee(problem: Problem) -> Trainee:
    """The one that all subjects of the problem train."""
    assert problem.hidden is not None
    torch.manual_seed(0)
    with torch.device(DEVICES[problem.device].tensors):
        model = Transformer(
            classes=problem.classes,
            width=problem.hidden,
            layers=problem.layers,
            sequence=problem.rows // BATCH,
            sigma=problem.sigma,
        ).to(problem.torch_dtype)
    # Fused: the cheapest there is, so that a loss cannot hide behind the optimiser.
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    one = Trainee(model, optimizer)
    one.update()
    return one


def training(criterion: Criterion, inputs: Inputs) -> Prepare:
    """A whole step. Nothing holds the logits but what the loss itself has kept."""
    one, (tokens,) = trainee(inputs.problem), inputs.leaves[0]

    def step() -> None:
        criterion(one.logits(tokens), inputs.target).backward()
        one.update()

    return lambda i: step


_anl = {"backend": "auto", "truth": official_anl_by_rows}


@subject("anl_kernels", criterion=anl, **_anl)
def train_ours(inputs: Inputs) -> Prepare:
    """The library, one pass."""
    return training(anl, inputs)


@subject("anl_kernels, inplace=True", criterion=anl_inplace, **_anl)
def train_ours_inplace(inputs: Inputs) -> Prepare:
    """With the gradient in the logits' memory, which the head's backward does not need."""
    return training(anl_inplace, inputs)


@subject("no loss, a given gradient of the logits")
def train_no_loss(inputs: Inputs) -> Prepare:
    """The roof: the same step around a loss that costs nothing."""
    problem = inputs.problem
    one, (tokens,) = trainee(problem), inputs.leaves[0]
    size = problem.rows, problem.classes
    # Random, for some GPUs multiply equal numbers faster.
    gradient = torch.randn(size, dtype=problem.torch_dtype, device=tokens.device) / problem.rows

    def step() -> None:
        one.logits(tokens).backward(gradient)
        one.update()

    return lambda i: step


@subject("F.cross_entropy (does less)")
def train_cross_entropy(inputs: Inputs) -> Prepare:
    """PyTorch's plain cross entropy, which ANL-CE replaces."""
    return training(F.cross_entropy, inputs)


@subject("torch.compile of well-written ANL")
def train_compiled(inputs: Inputs) -> Prepare:
    """The loss alone through the compiler."""
    return training(compiled_alone(careful_anl), inputs)


@subject("well-written ANL, eager")
def train_careful(inputs: Inputs) -> Prepare:
    """ANL with no more tensors than eager PyTorch needs."""
    return training(careful_anl, inputs)


@subject("official ANL, eager")
def train_official(inputs: Inputs) -> Prepare:
    """The papers' way."""
    return training(official_anl_by_rows, inputs)


@subject("Liger cross entropy (does less)", "cuda")
def train_liger(inputs: Inputs) -> Prepare:
    """liger_kernel's plain cross entropy, in place as well; it waits for the GPU."""
    package = import_module("liger_kernel.transformers.functional")
    return training(package.liger_cross_entropy, inputs)
