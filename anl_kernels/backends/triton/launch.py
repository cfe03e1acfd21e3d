"""The Triton backend: chooses kernels and launches them. The functions are ``Kernels``'."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from anl_kernels.backends.triton.arguments import (
    block_args,
    num_processors,
    on_device,
    output_args,
    row_args,
    scale_arg,
    shape_args,
    split_numbers,
    term_constants,
)
from anl_kernels.backends.triton.backward import row_grad_kernel, scale_kernel
from anl_kernels.backends.triton.forward import row_sweep_kernel, row_tile_kernel
from anl_kernels.backends.triton.launch_columns import column_grad, column_sums
from anl_kernels.backends.triton.launch_parts import (
    shard_finish,
    shard_partials,
    shard_sums,
    split_rows,
)
from anl_kernels.backends.triton.plan import Plan, plan_rows, plan_tiles
from anl_kernels.backends.triton.softmax import (
    softmax_backward_sweep_kernel,
    softmax_backward_tile_kernel,
    softmax_sweep_kernel,
    softmax_tile_kernel,
)
from anl_kernels.backends.triton.terms import FUNCTORS
from anl_kernels.interface import RowOutputs, RowRequest, empty_outputs, scaled_loss
from anl_kernels.layout import RowView, as_rows, empty_like_rows, writable_rows

__all__ = [
    "column_grad",
    "column_sums",
    "empty_like_rows",
    "is_dense",
    "knows",
    "row_grad",
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
    outputs = _row_loss(logits, target, row_scale, term_weights, request)
    return outputs._replace(loss=scaled_loss(outputs.row_losses, target, row_scale, request))


def _row_loss(
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    term_weights: Tensor | None,
    request: RowRequest,
) -> RowOutputs:
    view = as_rows(logits)
    N = target.numel()
    constants = term_constants(request.terms)
    plan = plan_rows(N, view.shape[1], view.class_first, logits.dtype, constants["NUM_DENSE"])
    outputs = empty_outputs(logits, target, request)
    if N == 0:
        return outputs
    grad = logits if request.write_grad and request.inplace else outputs.grad
    if plan.form == "split":
        # The gradient of a split row is a launch of its own, which reads what was saved.
        kept = request._replace(write_grad=False, probs=False, write_saved=True)
        results = empty_outputs(logits, target, kept)
        with on_device(logits):
            split_rows(view, target, term_weights, results, request, plan)
            if request.probs:
                _softmax(view, writable_rows(outputs.probs))
        if request.write_grad:
            row_grad(grad, logits, target, row_scale, results.saved, request)
        saved = results.saved if request.write_saved else outputs.saved
        return results._replace(grad=outputs.grad, probs=outputs.probs, saved=saved)
    with on_device(logits):
        kernel = row_tile_kernel if plan.form == "tile" else row_sweep_kernel
        kernel[(triton.cdiv(N, plan.block_n),)](
            **row_args(view, target, request),
            **output_args(outputs, grad),
            SCALE=scale_arg(row_scale),
            W=term_weights,
            P=split_numbers(request.terms),
            ALL_ROWS=request.aux or request.probs,
            **constants,
            **block_args(plan, logits.dtype),
        )
    return outputs


def row_grad(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    saved: Tensor,
    request: RowRequest,
) -> None:
    """See ``Backend.row_grad``."""
    if not grad.numel():
        return
    view = as_rows(logits)
    plan = plan_tiles(view.shape[1], view.class_first, logits.dtype)
    with on_device(logits):
        row_grad_kernel[(_tiles(view, plan),)](
            **row_args(view, target, request),
            SCALE=scale_arg(row_scale),
            SAVED=saved,
            GRAD=writable_rows(grad).strided,
            P=split_numbers(request.terms),
            TERMS=term_constants(request.terms)["TERMS"],
            **block_args(plan, logits.dtype),
        )


def scale_(tensor: Tensor, factor: Tensor) -> None:
    """See ``Backend.scale_``."""
    if not tensor.numel():
        return
    view = writable_rows(tensor)
    plan = plan_tiles(view.shape[1], view.class_first, tensor.dtype)
    programs = min(_tiles(view, plan), SCALE_PROGRAMS_PER_PROCESSOR * num_processors(tensor.device))
    with on_device(tensor):
        scale_kernel[(programs,)](
            T=view.strided, FACTOR=factor, **shape_args(view), **block_args(plan, tensor.dtype)
        )


def softmax(logits: Tensor) -> Tensor:
    """See ``Kernels.softmax``."""
    probs = torch.empty_like(logits)
    if probs.numel():
        with on_device(logits):
            _softmax(as_rows(logits), writable_rows(probs))
    return probs


def softmax_backward(grad: Tensor, probs: Tensor) -> Tensor:
    """See ``Kernels.softmax_backward``."""
    result = torch.empty_like(probs)
    if result.numel():
        view = as_rows(probs)
        plan = _plan_whole_rows(view)
        tile = plan.form == "tile"
        kernel = softmax_backward_tile_kernel if tile else softmax_backward_sweep_kernel
        with on_device(probs):
            kernel[(triton.cdiv(grad.numel() // view.shape[1], plan.block_n),)](
                PROBS=view.strided,
                UP=as_rows(grad).strided,
                GRAD=writable_rows(result).strided,
                **shape_args(view),
                **block_args(plan, probs.dtype),
            )
    return result


def _softmax(view: RowView, probs: RowView) -> None:
    plan = _plan_whole_rows(view)
    kernel = softmax_tile_kernel if plan.form == "tile" else softmax_sweep_kernel
    shape = shape_args(view)
    kernel[(triton.cdiv(shape["N"], plan.block_n),)](
        Z=view.strided, PROBS=probs.strided, **shape, **block_args(plan, view.tensor.dtype)
    )


def _plan_whole_rows(view: RowView) -> Plan:
    B, K, M = view.shape
    return plan_rows(B * M, K, view.class_first, view.tensor.dtype, may_split=False)


def _tiles(view: RowView, plan: Plan) -> int:
    B, K, M = view.shape
    return triton.cdiv(B * M, plan.block_n) * triton.cdiv(K, plan.block_k)
