"""What contenders are given, in as many copies as it takes to find none of them in a cache."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.devices import DEVICES
from benchmarks.problems import Problem

FLUSH = 4
"""Copies hold this multiple of the last-level cache."""
MAX_COPIES = 1024
"""For logits of a few KiB, which a real layer leaves in a cache as well."""


@dataclass(frozen=True)
class Inputs:
    """Equal copies of the tensors of a problem, as leaves that require grad.

    Of a model that is trained, one copy of its tokens: the model itself is the contenders' to make.
    """

    problem: Problem
    leaves: list[tuple[Tensor, ...]]
    """Each copy: the logits; or the hidden state and the head's weight; or tokens."""
    target: Tensor
    spare: list[Tensor]
    """For each copy a tensor like its first leaf, of the same values."""
    _borrowed: list[int] = field(default_factory=list)
    """The spare that was overwritten last, if any was."""

    @property
    def logits(self) -> list[Tensor]:
        """The copies, where they are logits."""
        return [logits for (logits,) in self.leaves]

    def borrow(self) -> Tensor:
        """A spare, which the borrower may overwrite.

        What the last borrower overwrote is restored now, outside of steps, and another one is given
        if there are two: one that has just been written would be found in a cache.
        """
        last = self._borrowed.pop() if self._borrowed else -1
        if last >= 0:
            self.spare[last].copy_(self.leaves[last][0].detach())
        following = (last + 1) % len(self.spare)
        self._borrowed.append(following)
        return self.spare[following]


def make_inputs(problem: Problem, copies: int | None = None, seed: int = 0) -> Inputs:
    """Gaussian logits, or what gives them, or uniform tokens; and uniform labels.

    By default as many copies as flush the cache.
    """
    device = DEVICES[problem.device]
    device.release()
    generator = torch.Generator(device.tensors).manual_seed(seed)
    if problem.layers:
        tokens, target = _labels(problem, generator), _labels(problem, generator)
        return Inputs(problem, [(tokens,)], target, [])
    make = _logits if problem.hidden is None else _head
    tensors = [leaf.to(problem.torch_dtype) for leaf in make(problem, generator)]
    target = _labels(problem, generator)
    if copies is None:
        size = sum(tensor.nbytes for tensor in tensors)
        copies = max(device.min_copies, copies_to_flush(size, device.cache_bytes()))
    leaves = [tuple(tensor.clone().requires_grad_() for tensor in tensors) for _ in range(copies)]
    return Inputs(problem, leaves, target, [tensors[0].clone() for _ in range(copies)])


def copies_to_flush(input_bytes: int, cache_bytes: int) -> int:
    """How many copies a contender has to walk through before it meets the first one again."""
    return min(MAX_COPIES, -(-FLUSH * cache_bytes // max(1, input_bytes)))


def _labels(problem: Problem, generator: torch.Generator) -> Tensor:
    size = problem.grid or (problem.rows,)
    return torch.randint(problem.classes, size, generator=generator, device=generator.device)


def _logits(problem: Problem, generator: torch.Generator) -> list[Tensor]:
    shape: tuple[int, ...] = (problem.rows, problem.classes)
    if problem.grid:
        shape = (problem.grid[0], problem.classes, *problem.grid[1:])
    logits = torch.randn(shape, generator=generator, device=generator.device)
    if problem.layout == "channels_last":
        logits = logits.to(memory_format=torch.channels_last)
    return [logits.mul_(problem.sigma)]


def _head(problem: Problem, generator: torch.Generator) -> list[Tensor]:
    """Hidden states of variance 1, and a weight that gives logits of the standard deviation."""
    assert problem.hidden is not None
    sizes = (problem.rows, problem.hidden), (problem.classes, problem.hidden)
    hidden, weight = (torch.randn(s, generator=generator, device=generator.device) for s in sizes)
    return [hidden, weight.mul_(problem.sigma / problem.hidden**0.5)]
