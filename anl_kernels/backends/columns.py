"""Column sums of clamped probabilities, and their gradient, in plain PyTorch, a chunk at a time.

What the reference computes them with, and a backend that has no kernels for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from anl_kernels.interface import NUM_LSE_PARTS, accumulator_dtype
from anl_kernels.layout import RowView, as_rows, writable_rows

CHUNK_ELEMENTS = 1 << 18
"""Of the logits that are worked on at once: small against a batch, large against a call."""


class _Part(NamedTuple):
    """Some rows of a (B, K, M) view: positions of batches."""

    batches: slice
    positions: slice

    def of(self, tensor: Tensor) -> Tensor:
        """(b, K, m) of (B, K, M)."""
        return tensor[self.batches, :, self.positions]

    def of_rows(self, tensor: Tensor) -> Tensor:
        """(b, m, ...) of (B, M, ...)."""
        return tensor[self.batches, self.positions]


def column_sums(
    logits: Tensor, counted: Tensor | None, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """See ``ColumnKernels.column_sums``."""
    view = as_rows(logits)
    B, K, M = view.shape
    dtype = accumulator_dtype(logits.dtype)
    sums = logits.new_zeros((K,), dtype=dtype)
    lse_parts = logits.new_zeros((B, M, NUM_LSE_PARTS), dtype=dtype)
    counts = None if counted is None else counted.reshape(B, M)
    for part in _parts(view):
        z = part.of(view.tensor).to(dtype)
        m = z.amax(1, keepdim=True)
        m = m.masked_fill(m == -torch.inf, 0)  # no class is there: every e is 0
        e = (z - m).exp()
        mass = e.sum(1, keepdim=True)
        p = (e / mass).clamp(low, high)
        made = torch.stack([m.squeeze(1), mass.log().squeeze(1)], -1)
        if counts is not None:
            counts_here = part.of_rows(counts)
            # Whatever stands in a row that does not count, it adds 0, not 0 * NaN.
            p = p.masked_fill(~counts_here.unsqueeze(1), 0)
            made = made.masked_fill(~counts_here.unsqueeze(-1), 0)
        sums += p.sum((0, 2))
        part.of_rows(lse_parts).copy_(made)
    return sums, lse_parts.view(-1, NUM_LSE_PARTS)


def column_grad(
    grad: Tensor,
    logits: Tensor,
    counted: Tensor | None,
    lse_parts: Tensor,
    slopes: Tensor,
    scale: Tensor,
    low: float,
    high: float,
    accumulate: bool,
) -> None:
    """See ``ColumnKernels.column_grad``."""
    view, out = as_rows(logits), writable_rows(grad).tensor
    B, _, M = view.shape
    by_row = lse_parts.view(B, M, NUM_LSE_PARTS)
    counts = None if counted is None else counted.reshape(B, M)
    for part in _parts(view):
        m, log_s = part.of_rows(by_row).unsqueeze(1).unbind(-1)
        p = (part.of(view.tensor).to(slopes.dtype) - m).sub_(log_s).exp_()
        u = slopes[:, None] * ((p >= low) & (p <= high))
        made = scale * p * (u - (p * u).sum(1, keepdim=True))
        if counts is not None:
            made = made.masked_fill(~part.of_rows(counts).unsqueeze(1), 0)
        here = part.of(out)
        here.copy_(here + made if accumulate else made)


def _parts(view: RowView) -> Iterator[_Part]:
    """All rows, no more of them at once than ``CHUNK_ELEMENTS`` allows, but at least one."""
    B, K, M = view.shape
    rows = max(1, CHUNK_ELEMENTS // max(1, K))
    batches, positions = max(1, rows // max(1, M)), min(max(1, M), rows)
    for b in range(0, B, batches):
        for m in range(0, M, positions):
            yield _Part(slice(b, b + batches), slice(m, m + positions))
