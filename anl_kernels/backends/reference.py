"""The reference backend: plain differentiable PyTorch, any dtype, any device.

It is what every kernel is tested against, what gradients of gradients go through, and what runs
where no kernel does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from anl_kernels.backends.interface import accumulator_dtype
from anl_kernels.terms import Terms
from anl_kernels.terms.row import Row


class ReferenceOutputs(NamedTuple):
    """Per-row results, in the target's shape (term losses: T first)."""

    row_losses: Tensor
    term_losses: Tensor
    row: Row


def row_loss(
    logits: Tensor,
    target: Tensor,
    term_weights: Tensor | None,
    terms: Terms,
    ignore_index: int,
) -> ReferenceOutputs:
    """The unscaled loss of every row: 0 where ignored, NaN where the label is out of range.

    Differentiable, twice and more, with respect to ``logits`` and ``term_weights``.
    """
    classes_last = logits.movedim(1, -1) if logits.dim() > 1 else logits
    z = classes_last.to(accumulator_dtype(logits.dtype))
    num_classes = z.shape[-1]
    ignored = target == ignore_index
    outside = ((target < 0) | (target >= num_classes)) & ~ignored
    # Whatever stands in an ignored row, its gradient is 0, not 0 * NaN.
    z = z.masked_fill(ignored.unsqueeze(-1), 0)
    row = Row(z, target.long().clamp(0, num_classes - 1))
    losses = torch.stack([term.rows(row) for term in terms.terms])
    losses = losses.masked_fill(ignored, 0) + torch.where(outside, torch.nan, 0.0)
    weights: Iterable[float | Tensor] = terms.factors if term_weights is None else term_weights
    weighted = torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)])
    return ReferenceOutputs(weighted.sum(0), losses, row)


def softmax(logits: Tensor, dim: int) -> Tensor:
    """Softmax over ``dim`` with the accumulator's arithmetic, in the logits' dtype."""
    return torch.softmax(logits, dim, dtype=accumulator_dtype(logits.dtype)).to(logits.dtype)
