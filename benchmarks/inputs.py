"""Logits and targets, in as many copies as it takes to find none of them in a cache."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.devices import DEVICES

FLUSH = 4
"""Copies hold this multiple of the last-level cache."""
MAX_COPIES = 1024
"""For logits of a few KiB, which a real layer leaves in a cache as well."""


@dataclass(frozen=True)
class Problem:
    """The size and kind of the logits."""

    rows: int
    classes: int
    dtype: torch.dtype
    scale: float = 3.0
    """Standard deviation: how many classes NNCE clamps, and with it the time, depend on it."""
    device: str = "cpu"
    """A key of ``DEVICES``."""

    @property
    def logits_bytes(self) -> int:
        """Size of the logits."""
        return self.rows * self.classes * self.dtype.itemsize


@dataclass(frozen=True)
class Inputs:
    """Equal copies of the logits of a problem, as leaves that require grad."""

    logits: list[Tensor]
    target: Tensor
    spare: list[Tensor]
    """For each copy a tensor of the same values."""
    _overwritten: set[int] = field(default_factory=set)

    def borrow(self, i: int) -> Tensor:
        """The i-th spare, which the borrower may overwrite.

        What earlier borrowers overwrote is restored now, outside their steps and on other copies
        than the one at hand, as a rule: that one is then as far from the caches as any other.
        """
        for j in self._overwritten:
            self.spare[j].copy_(self.logits[j].detach())
        self._overwritten.clear()
        self._overwritten.add(i)
        return self.spare[i]


def make_inputs(problem: Problem, copies: int | None = None, seed: int = 0) -> Inputs:
    """Gaussian logits and uniform labels; by default as many copies as flush the cache."""
    device = DEVICES[problem.device]
    device.release()
    generator = torch.Generator(device.tensors).manual_seed(seed)
    shape = problem.rows, problem.classes
    noise = torch.randn(shape, generator=generator, device=device.tensors)
    logits = noise.mul_(problem.scale).to(problem.dtype)
    del noise
    target = torch.randint(problem.classes, shape[:1], generator=generator, device=device.tensors)
    if copies is None:
        flushing = copies_to_flush(problem.logits_bytes, device.cache_bytes())
        copies = max(device.min_copies, flushing)
    return Inputs(
        [logits.clone().requires_grad_() for _ in range(copies)],
        target,
        [logits.clone() for _ in range(copies)],
    )


def copies_to_flush(logits_bytes: int, cache_bytes: int) -> int:
    """How many copies a subject has to walk through before it meets the first one again."""
    return min(MAX_COPIES, -(-FLUSH * cache_bytes // logits_bytes))
