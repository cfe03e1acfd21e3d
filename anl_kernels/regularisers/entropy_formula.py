"""The entropy regulariser out of column sums, and as a definition; formulas in docs/math.md."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anl_kernels.checks import class_dim, on_plain_cpu
from anl_kernels.distributed.collectives import SumOfBatches
from anl_kernels.interface import accumulator_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def of_column_sums(sums: Tensor, min_prob: float) -> tuple[Tensor, Tensor]:
    """(0-d, (K,)): the regulariser and its derivatives by the sums; 0 where all sums are 0.

    Near the uniform distribution its value is a small difference of numbers of the size of log K.
    Here it is a sum of what is not negative, and the derivatives of what is near 0. On a CPU one
    operator computes the same (csrc/cpu/entropy.h).
    """
    if on_plain_cpu(sums):
        return torch.ops.anl_kernels_cpu.entropy(sums, min_prob)
    num_classes = sums.numel()
    log_k = math.log(num_classes)
    total = sums.sum()
    nothing = total == 0
    total = total.masked_fill(nothing, 1)
    q = sums / total
    high = q.clamp(min=min_prob)
    d = high * num_classes - 1
    t = d.log1p()  # log K q
    added = (high - q).sum()  # by the clamp, to the sum of all q
    value = ((1 + d) * t - d).sum() / num_classes + added * (1 - log_k)
    clamped = q < min_prob
    t = t.masked_fill(clamped, 0)
    of_clamped = q.masked_fill(~clamped, 0).sum()
    slopes = (t - (t * q).sum()) + (1 - log_k) * (of_clamped - clamped.to(q.dtype))
    return value.masked_fill(nothing, 0), (slopes / total).masked_fill(nothing, 0)


def definition(
    logits: Tensor, counted: Tensor | None, min_prob: float, group: ProcessGroup | None
) -> Tensor:
    """The regulariser as it is written, differentiable as often as one likes."""
    dim = class_dim(logits)
    z = logits.to(accumulator_dtype(logits.dtype))
    left_out = None if counted is None else ~counted.unsqueeze(dim)
    if left_out is not None:
        z = z.masked_fill(left_out, 0)
    p = z.softmax(dim).clamp(min_prob, 1 - min_prob)
    if left_out is not None:
        p = p.masked_fill(left_out, 0)
    sums = p.movedim(dim, -1).flatten(0, -2).sum(0) if p.dim() > 1 else p
    if group is not None:
        sums = SumOfBatches.apply(sums, group)
    total = sums.sum()
    nothing = total == 0
    q = (sums / torch.where(nothing, 1, total)).clamp(min=min_prob)
    value = math.log(q.numel()) + (q * q.log()).sum()
    return torch.where(nothing, 0, value)
