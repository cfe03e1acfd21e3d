"""Launches the kernels of column sums; the functions are ``ColumnKernels``'."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from anl_kernels.backends.triton.arguments import (
    block_args,
    num_processors,
    on_device,
    shape_args,
    split,
)
from anl_kernels.backends.triton.columns import (
    column_grad_sweep_kernel,
    column_grad_tile_kernel,
    column_sums_kernel,
    lse_parts_sweep_kernel,
    lse_parts_tile_kernel,
)
from anl_kernels.backends.triton.plan import plan_column_sums, plan_rows
from anl_kernels.interface import NUM_LSE_PARTS, accumulator_dtype
from anl_kernels.layout import RowView, as_rows, writable_rows


def column_sums(
    logits: Tensor, counted: Tensor | None, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """See ``ColumnKernels.column_sums``."""
    view, dtype = as_rows(logits), accumulator_dtype(logits.dtype)
    B, K, M = view.shape
    lse_parts = logits.new_empty((B * M, NUM_LSE_PARTS), dtype=dtype)
    if not logits.numel():
        return logits.new_zeros((K,), dtype=dtype), lse_parts
    _lse_parts(view, counted, lse_parts)
    processors = num_processors(logits.device)
    plan, group_rows = plan_column_sums(B * M, K, view.class_first, logits.dtype, processors)
    groups = triton.cdiv(B * M, group_rows)
    partial = logits.new_empty((groups, K), dtype=dtype)
    with on_device(logits):
        column_sums_kernel[(groups, triton.cdiv(K, plan.block_k))](
            **_row_args(view, counted, lse_parts),
            PARTIAL=partial,
            GROUP_ROWS=group_rows,
            BOUNDS=_bounds(low, high),
            **block_args(plan, logits.dtype),
        )
    return partial.sum(0), lse_parts


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
    if not logits.numel():
        return
    view = as_rows(logits)
    B, K, M = view.shape
    plan = plan_rows(B * M, K, view.class_first, logits.dtype, may_split=False)
    kernel = column_grad_tile_kernel if plan.form == "tile" else column_grad_sweep_kernel
    with on_device(logits):
        kernel[(triton.cdiv(B * M, plan.block_n),)](
            **_row_args(view, counted, lse_parts),
            SLOPES=slopes,
            SCALE=scale,
            GRAD=writable_rows(grad).strided,
            BOUNDS=_bounds(low, high),
            ACCUMULATE=accumulate,
            **block_args(plan, logits.dtype),
        )


def _lse_parts(view: RowView, counted: Tensor | None, lse_parts: Tensor) -> None:
    B, K, M = view.shape
    dtype = view.tensor.dtype
    plan = plan_rows(B * M, K, view.class_first, dtype, may_split=False)
    tile = plan.form == "tile"
    kernel = lse_parts_tile_kernel if tile else lse_parts_sweep_kernel
    with on_device(view.tensor):
        kernel[(triton.cdiv(B * M, plan.block_n),)](
            **_row_args(view, counted, lse_parts), **block_args(plan, dtype)
        )


def _row_args(view: RowView, counted: Tensor | None, lse_parts: Tensor) -> dict[str, Any]:
    return {
        "Z": view.strided,
        "COUNTED": None if counted is None else counted.reshape(-1).view(torch.uint8),
        "LSE_PARTS": lse_parts,
        **shape_args(view),
    }


@lru_cache(maxsize=16)
def _bounds(low: float, high: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return split((low, high))
