"""Logits and targets, in as many copies as it takes to find none of them in a cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

FLUSH = 4
"""Copies hold this multiple of the last-level cache."""
MAX_COPIES = 1024
"""For logits of a few KiB, which a real layer leaves in a cache as well."""
TYPICAL_CACHE = 32 << 20


@dataclass(frozen=True)
class Problem:
    """The size and kind of the logits."""

    rows: int
    classes: int
    dtype: torch.dtype
    scale: float = 3.0
    """Standard deviation: how many classes NNCE clamps, and with it the time, depend on it."""

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
    """For each copy a tensor of the same values whose memory a subject may write to."""


def make_inputs(problem: Problem, copies: int | None = None, seed: int = 0) -> Inputs:
    """Gaussian logits and uniform labels; by default as many copies as flush the cache."""
    generator = torch.Generator().manual_seed(seed)
    shape = problem.rows, problem.classes
    logits = (problem.scale * torch.randn(shape, generator=generator)).to(problem.dtype)
    target = torch.randint(problem.classes, shape[:1], generator=generator)
    if copies is None:
        copies = copies_to_flush(problem.logits_bytes, last_level_cache())
    return Inputs(
        [logits.clone().requires_grad_() for _ in range(copies)],
        target,
        [logits.clone() for _ in range(copies)],
    )


def copies_to_flush(logits_bytes: int, cache_bytes: int) -> int:
    """How many copies a subject has to walk through before it meets the first one again."""
    return min(MAX_COPIES, -(-FLUSH * cache_bytes // logits_bytes))


def last_level_cache() -> int:
    """Bytes of the largest cache of CPU 0, as Linux tells it."""
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [int(file.read_text().strip().removesuffix("K")) << 10 for file in files]
    return max(sizes, default=TYPICAL_CACHE)
