"""Training steps of one transformer, with this or that loss.

All contenders of a problem train the same model with the same optimiser, so that they differ in
their loss alone, take turns on equal terms, and do not fill the memory with models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contenders.base import Criterion, contender, register
from benchmarks.contenders.formulas import careful_anl, official_anl_by_rows
from benchmarks.contenders.library import anl, anl_inplace
from benchmarks.contenders.peers import LIGER
from benchmarks.devices import DEVICES
from benchmarks.inputs import Inputs
from benchmarks.problems import Problem
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
    """The one that all contenders of the problem train."""
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


def _register(name: str, label: str, criterion: Criterion | str, *devices: str, **how: Any) -> None:
    register(f"train_{name}", label, criterion, *devices, take=training, **how)


_anl = {"backend": "auto", "truth": official_anl_by_rows}
_register("ours", "anl_kernels", anl, **_anl)
# The gradient in the logits' memory, which the head's backward does not need.
_register("ours_inplace", "anl_kernels, inplace=True", anl_inplace, **_anl)
_register("cross_entropy", "F.cross_entropy (does less)", F.cross_entropy)
# The loss alone.
_register("compiled", "torch.compile of well-written ANL", careful_anl, compiled=True)
_register("careful", "well-written ANL, eager", careful_anl)
_register("official", "official ANL, eager", official_anl_by_rows)
# In place as well; it waits for the GPU.
_register("liger", "Liger cross entropy (does less)", f"{LIGER}:liger_cross_entropy", "cuda")


@contender("no loss, a given gradient of the logits")
def train_no_loss(inputs: Inputs) -> Prepare:
    """The roofline: the same step around a loss that costs nothing."""
    problem = inputs.problem
    one, (tokens,) = trainee(problem), inputs.leaves[0]
    size = problem.rows, problem.classes
    # Random, for some GPUs multiply equal numbers faster.
    gradient = torch.randn(size, dtype=problem.torch_dtype, device=tokens.device) / problem.rows

    def step() -> None:
        one.logits(tokens).backward(gradient)
        one.update()

    return lambda i: step
