"""Means over a batch that ranks may share: what a term over the whole batch is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anl_kernels.checks import check_dtype
from anl_kernels.distributed.collectives import add_up_, check_group, sum_of_batches
from anl_kernels.distributed.local_parts import is_dtensor
from anl_kernels.interface import accumulator_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def column_means(rows: Tensor, process_group: ProcessGroup | None = None) -> Tensor:
    """Means of columns over the rows of all ranks: what a term over the whole batch is made of.

    The gradient is right for data parallelism that averages the ranks' gradients, as
    ``DistributedDataParallel`` and FSDP do, if every rank adds the same term to its loss.

    Args:
        rows: (N, K), floating, such as ``ak.softmax(logits)``; N may differ between ranks. A
            ``DTensor`` knows the rows of all ranks; its means are one, and need no process_group.
        process_group: the ranks that share the batch; None for this process's rows alone.

    Returns:
        (K,), in the dtype of the rows, the same on every rank; 0 where there are no rows.

    Raises:
        ValueError: rows are not (N, K), or a DTensor beside a process_group.
        TypeError: rows are not floating, or process_group is no process group.
    """
    check_dtype("rows", rows)
    if rows.dim() != 2:
        raise ValueError(f"rows must have shape (N, K), got {tuple(rows.shape)}; flatten them")
    dtype = accumulator_dtype(rows.dtype)
    if is_dtensor(rows):
        return _of_dtensor(rows, dtype, process_group)
    total, count = rows.sum(0, dtype=dtype), rows.new_full((), rows.shape[0], dtype=dtype)
    if process_group is not None:
        group = check_group(process_group)
        total = sum_of_batches(total, group)
        count = add_up_(count, group)
    return (total / count.clamp(min=1)).to(rows.dtype)


def _of_dtensor(rows: Tensor, dtype: torch.dtype, group: ProcessGroup | None) -> Tensor:
    if group is not None:
        raise ValueError(
            "process_group must be None for rows that are a DTensor, which has those of all ranks"
        )
    from torch.distributed.tensor import Replicate

    total: Any = rows.sum(0, dtype=dtype)
    whole = [Replicate() if place.is_partial() else place for place in total.placements]
    return (total.redistribute(placements=whole) / max(1, rows.shape[0])).to(rows.dtype)
