"""Launches of rows in parts: long rows split over programs, and the shard of rows that a rank has.

:mod:`anl_kernels.backends.triton.split` says what the parts leave for each other.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from anl_kernels.backends.triton.arguments import (
    OPTIONS,
    acc_type,
    block_args,
    on_device,
    output_args,
    row_args,
    split_numbers,
    term_constants,
)
from anl_kernels.backends.triton.plan import Plan, for_sums, plan_rows
from anl_kernels.backends.triton.split import (
    split_finish_kernel,
    split_merge_kernel,
    split_partials_kernel,
    split_sums_kernel,
)
from anl_kernels.interface import (
    NUM_PARTIALS,
    RowOutputs,
    RowRequest,
    accumulator_dtype,
    empty_outputs,
)
from anl_kernels.layout import RowView, as_rows

# The heads of a shard's rows, one a thread, in programs that are small enough to go round.
FINISH_ROWS, FINISH_WARPS = 64, 2


def split_rows(
    view: RowView,
    target: Tensor,
    term_weights: Tensor | None,
    outputs: RowOutputs,
    request: RowRequest,
    plan: Plan,
) -> None:
    """Everything but the gradient and the softmax of rows that are split over programs."""
    linear = term_constants(request.terms)["LINEAR"]
    parts, best = _partials(view, target, request, plan, linear=linear, shard=False)
    sums = _sums(view, target, parts, request, plan)
    blocks = {"BLOCK_N": 1, "num_warps": plan.num_warps}
    _finish(parts, best, sums, target, term_weights, outputs, request, view.shape[1], blocks)


def shard_partials(logits: Tensor, target: Tensor, request: RowRequest) -> tuple[Tensor, Tensor]:
    """See ``Kernels.shard_partials``."""
    view = as_rows(logits)
    plan = _plan(view, num_dense=0)
    with on_device(logits):
        parts, best = _partials(view, target, request, plan, linear=True, shard=True)
        return _merged(parts, best, view.shape[1])


def shard_sums(logits: Tensor, target: Tensor, partials: Tensor, request: RowRequest) -> Tensor:
    """See ``Kernels.shard_sums``."""
    view = as_rows(logits)
    plan = _plan(view, term_constants(request.terms)["NUM_DENSE"])
    with on_device(logits):
        sums = _sums(view, target, partials.contiguous()[:, None], request, plan)
        return sums[:, 0] if sums.shape[1] == 1 else sums.sum(1)


def shard_finish(
    partials: Tensor,
    sums: Tensor,
    target: Tensor,
    term_weights: Tensor | None,
    request: RowRequest,
) -> RowOutputs:
    """See ``Kernels.shard_finish``."""
    nothing = partials.new_empty((0,))
    wanted = request._replace(write_grad=False, probs=False)
    outputs = empty_outputs(partials, target, wanted)._replace(loss=nothing, argmax=nothing)
    parts = partials.contiguous()[:, None]
    blocks = {"BLOCK_N": FINISH_ROWS, "num_warps": FINISH_WARPS}
    with on_device(partials):
        _finish(
            parts, nothing, sums.contiguous()[:, None], target, term_weights, outputs, request,
            None, blocks,
        )  # fmt: skip
    return outputs


def _plan(view: RowView, num_dense: int) -> Plan:
    B, K, M = view.shape
    return plan_rows(B * M, K, view.class_first, view.tensor.dtype, num_dense)


def _partials(
    view: RowView, target: Tensor, request: RowRequest, plan: Plan, *, linear: bool, shard: bool
) -> tuple[Tensor, Tensor]:
    """(N, parts, NUM_PARTIALS), and the places of the maxima, (N, parts), if they are wanted."""
    N, part, splits = target.numel(), *_parts_of(view, plan)
    acc = accumulator_dtype(view.tensor.dtype)
    parts = view.tensor.new_empty((N, splits, NUM_PARTIALS), dtype=acc)
    best = parts.new_empty((N, splits) if request.aux else (0, splits), dtype=torch.int64)
    if N:
        split_partials_kernel[(triton.cdiv(N, plan.block_n) * splits,)](
            **row_args(view, target, request),
            PARTS=parts,
            BEST=best if request.aux else None,
            SPLITS=splits,
            PART=part,
            SHARD=shard,
            TILE=plan.form == "tile",
            LINEAR=linear,
            ALL_ROWS=_reads_all_rows(request),
            **block_args(plan, view.tensor.dtype),
        )
    return parts, best


def _merged(parts: Tensor, best: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Partials of parts of rows as those of one part."""
    N, splits, _ = parts.shape
    if splits == 1:
        return parts[:, 0], best[:, 0]
    merged, merged_best = parts.new_empty((N, NUM_PARTIALS)), best.new_empty(best.shape[:1])
    if N:
        split_merge_kernel[(N,)](
            PARTS=parts,
            BEST=best if best.numel() else None,
            MERGED=merged,
            MERGED_BEST=merged_best if best.numel() else None,
            N=N,
            K=num_classes,
            SPLITS=splits,
            BLOCK_N=1,
            BLOCK_S=triton.next_power_of_2(splits),
            **OPTIONS,
        )
    return merged, merged_best


def _sums(
    view: RowView, target: Tensor, partials: Tensor, request: RowRequest, plan: Plan
) -> Tensor:
    """(N, parts, 2 * number of dense terms); the partials' parts need not be the same ones."""
    constants = term_constants(request.terms)
    N, part, splits = target.numel(), *_parts_of(view, plan)
    sums = partials.new_empty((N, splits, 2 * constants["NUM_DENSE"]))
    if sums.numel():
        given = partials.shape[1]
        split_sums_kernel[(triton.cdiv(N, plan.block_n) * splits,)](
            **row_args(view, target, request),
            PARTS=partials,
            SUMS=sums,
            GIVEN=given,
            SPLITS=splits,
            PART=part,
            TILE=plan.form == "tile",
            P=split_numbers(request.terms),
            TERMS=constants["TERMS"],
            NUM_DENSE=constants["NUM_DENSE"],
            ALL_ROWS=_reads_all_rows(request),
            BLOCK_S=triton.next_power_of_2(given),
            **block_args(for_sums(plan, view.tensor.dtype), view.tensor.dtype),
        )
    return sums


def _finish(
    parts: Tensor,
    best: Tensor,
    sums: Tensor,
    target: Tensor,
    term_weights: Tensor | None,
    outputs: RowOutputs,
    request: RowRequest,
    num_classes: int | None,
    blocks: dict[str, int],
) -> None:
    N, splits, _ = parts.shape
    constants = term_constants(request.terms)
    if N:
        split_finish_kernel[(triton.cdiv(N, blocks["BLOCK_N"]),)](
            Y=target.reshape(-1),
            W=term_weights,
            OUT=output_args(outputs, outputs.grad)["OUT"],
            PARTS=parts,
            BEST=best if best.numel() else None,
            SUMS=sums if sums.numel() else None,
            N=N,
            K=num_classes,
            IGNORE=request.ignore_index,
            SPLITS=splits,
            P=split_numbers(request.terms),
            TERMS=constants["TERMS"],
            NUM_DENSE=constants["NUM_DENSE"],
            ACC=acc_type(parts.dtype),
            BLOCK_S=triton.next_power_of_2(splits),
            **blocks,
            **OPTIONS,
        )


def _parts_of(view: RowView, plan: Plan) -> tuple[int, int]:
    """(classes in a part of a row, parts)."""
    K = view.shape[1]
    part = plan.part if plan.form == "split" else K
    return part, triton.cdiv(K, part)


def _reads_all_rows(request: RowRequest) -> bool:
    return request.aux or request.probs
