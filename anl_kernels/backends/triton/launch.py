"""The Triton backend: chooses kernels and launches them. The functions are ``Kernels``'."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from anl_kernels.backends.triton.backward import row_grad_kernel, scale_kernel
from anl_kernels.backends.triton.columns import (
    column_grad_sweep_kernel,
    column_grad_tile_kernel,
    column_sums_kernel,
    lse_parts_sweep_kernel,
    lse_parts_tile_kernel,
)
from anl_kernels.backends.triton.forward import row_sweep_kernel, row_tile_kernel
from anl_kernels.backends.triton.launch_parts import (
    plan_terms,
    shard_finish,
    shard_partials,
    shard_sums,
    split_rows,
)
from anl_kernels.backends.triton.plan import Plan, plan_column_sums, plan_rows, plan_tiles
from anl_kernels.backends.triton.softmax import (
    softmax_backward_sweep_kernel,
    softmax_backward_tile_kernel,
    softmax_sweep_kernel,
    softmax_tile_kernel,
)
from anl_kernels.backends.triton.structs import (
    Numbers,
    compiled,
    labelled,
    launch,
    num_processors,
    outputs_of,
    scale_of,
    split,
    strided,
    sum_of,
    written,
)
from anl_kernels.backends.triton.terms import FUNCTORS
from anl_kernels.interface import (
    NUM_LSE_PARTS,
    RowOutputs,
    RowRequest,
    accumulator_dtype,
    empty_outputs,
    scaled_loss,
)
from anl_kernels.layout import RowView, as_rows, empty_like_rows

__all__ = [
    "column_grad",
    "column_sums",
    "empty_like_rows",
    "is_dense",
    "knows",
    "row_grad_into",
    "row_loss",
    "scale_",
    "shard_finish",
    "shard_partials",
    "shard_sums",
    "softmax",
    "softmax_backward",
]

SCALE_PROGRAMS_PER_PROCESSOR = 4  # enough loads in flight to fill the memory bus


def knows(functor: str) -> bool:
    """See ``Backend.knows``."""
    return functor in FUNCTORS


def is_dense(functor: str) -> bool:
    """See ``Kernels.is_dense``."""
    return FUNCTORS[functor].is_dense


def row_loss(
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    term_weights: Tensor | None,
    request: RowRequest,
) -> RowOutputs:
    """See ``Backend.row_loss``."""
    outputs = empty_outputs(logits, target, request)
    row_losses = outputs.row_losses
    if row_losses is None:
        row_losses = row_scale.new_empty(target.numel())
    grad = logits if request.overwrites else outputs.grad
    if target.numel():
        results = outputs._replace(row_losses=row_losses, grad=grad)
        _row_loss(logits, target, row_scale, term_weights, results, request)
    if request.wants("loss"):
        loss = scaled_loss(row_losses, target, row_scale, request)
        outputs = outputs._replace(loss=loss)
    return outputs


def _row_loss(
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    term_weights: Tensor | None,
    outputs: RowOutputs,
    request: RowRequest,
) -> None:
    """Fill ``outputs``, where the loss is not yet."""
    view = as_rows(logits)
    plan = plan_terms(view, compiled(request.terms).num_dense)
    if plan.kind == "split":
        # The gradient of a split row is a launch of its own, which reads what was saved.
        saved = outputs.saved
        if saved is None and outputs.grad is not None:
            saved = empty_outputs(logits, target, request.asking("saved")).saved
        split_rows(view, target, term_weights, outputs._replace(saved=saved), request, plan)
        if outputs.probs is not None:
            _softmax(view, outputs.probs)
        if outputs.grad is not None and saved is not None:
            row_grad_into(outputs.grad, logits, target, row_scale, saved, request)
        return
    launch(
        row_tile_kernel if plan.kind == "tile" else row_sweep_kernel,
        plan,
        view,
        **labelled(view, target, request),
        SCALE=scale_of(row_scale),
        W=term_weights,
        **outputs_of(outputs),
        **sum_of(request.terms),
        ALL_ROWS=request.reads_ignored,
    )


def row_grad_into(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    saved: Tensor,
    request: RowRequest,
) -> None:
    """See ``Backend.row_grad_into``."""
    view, plan, programs = _tiles(logits)
    launch(
        row_grad_kernel,
        plan,
        view,
        programs,
        **labelled(view, target, request),
        SCALE=scale_of(row_scale),
        SAVED=saved,
        GRAD=written(grad),
        **sum_of(request.terms),
    )


def scale_(tensor: Tensor, factor: Tensor) -> None:
    """See ``Backend.scale_``."""
    view, plan, programs = _tiles(tensor)
    programs = min(programs, SCALE_PROGRAMS_PER_PROCESSOR * num_processors(tensor.device))
    launch(scale_kernel, plan, view, programs, T=written(tensor), FACTOR=factor)


def softmax(logits: Tensor) -> Tensor:
    """See ``Kernels.softmax``."""
    probs = torch.empty_like(logits)
    _softmax(as_rows(logits), probs)
    return probs


def _softmax(view: RowView, probs: Tensor) -> None:
    kernels = softmax_tile_kernel, softmax_sweep_kernel
    _whole_rows(kernels, view, Z=strided(view), PROBS=written(probs))


def softmax_backward(grad: Tensor, probs: Tensor) -> Tensor:
    """See ``Kernels.softmax_backward``."""
    result, view = torch.empty_like(probs), as_rows(probs)
    kernels = softmax_backward_tile_kernel, softmax_backward_sweep_kernel
    up, made = strided(as_rows(grad)), written(result)
    _whole_rows(kernels, view, PROBS=strided(view), UP=up, GRAD=made)
    return result


def column_sums(
    logits: Tensor, counted: Tensor | None, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """See ``ColumnKernels.column_sums``."""
    view, dtype = as_rows(logits), accumulator_dtype(logits.dtype)
    B, K, M = view.shape
    lse_parts = logits.new_empty((B * M, NUM_LSE_PARTS), dtype=dtype)
    if not logits.numel():
        return logits.new_zeros((K,), dtype=dtype), lse_parts
    rows = {"Z": strided(view), "VALID": _bytes(counted), "LSE_PARTS": lse_parts}
    _whole_rows((lse_parts_tile_kernel, lse_parts_sweep_kernel), view, **rows)
    processors = num_processors(logits.device)
    plan, group_rows = plan_column_sums(B * M, K, view.class_first, logits.dtype, processors)
    groups, across = triton.cdiv(B * M, group_rows), triton.cdiv(K, plan.block_k)
    partial = logits.new_empty((groups, K), dtype=dtype)
    own = {"PARTIAL": partial, "GROUP_ROWS": group_rows, "BOUNDS": _bounds(low, high)}
    launch(column_sums_kernel, plan, view, groups, across, **rows, **own)
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
    view = as_rows(logits)
    _whole_rows(
        (column_grad_tile_kernel, column_grad_sweep_kernel),
        view,
        Z=strided(view),
        VALID=_bytes(counted),
        LSE_PARTS=lse_parts,
        SLOPES=slopes,
        SCALE=scale,
        GRAD=written(grad),
        BOUNDS=_bounds(low, high),
        ACCUMULATE=accumulate,
    )


def _whole_rows(kernels: tuple[Any, Any], view: RowView, **arguments: Any) -> None:
    """Launch the kernel for tiles or the one for sweeps, unless there is nothing to do."""
    B, K, M = view.shape
    plan = plan_rows(B * M, K, view.class_first, view.tensor.dtype, may_split=False)
    if K:
        launch(kernels[plan.kind == "sweep"], plan, view, **arguments)


def _tiles(tensor: Tensor) -> tuple[RowView, Plan, int]:
    """(view, plan, programs) of a kernel that works on tiles."""
    view = as_rows(tensor)
    B, K, M = view.shape
    plan = plan_tiles(K, view.class_first, tensor.dtype)
    return view, plan, triton.cdiv(B * M, plan.block_n) * triton.cdiv(K, plan.block_k)


def _bytes(counted: Tensor | None) -> Tensor | None:
    return None if counted is None else counted.reshape(-1).view(torch.uint8)


@lru_cache(maxsize=16)
def _bounds(low: float, high: float) -> Numbers:
    return split((low, high))
