"""Launches of rows in parts: long rows split over programs, and the shard of rows that a rank has.

:mod:`anl_kernels.backends.triton.split` says what the parts leave for each other.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from anl_kernels.backends.triton.plan import Plan, for_sums, plan_rows
from anl_kernels.backends.triton.split import (
    split_finish_kernel,
    split_merge_kernel,
    split_partials_kernel,
    split_sums_kernel,
)
from anl_kernels.backends.triton.structs import (
    Parts,
    compiled,
    labelled,
    launch,
    outputs_of,
    sum_of,
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
FINISH = Plan("tile", 64, 1, 2)
MERGE = Plan("tile", 1, 1, 4)


def split_rows(
    view: RowView,
    target: Tensor,
    term_weights: Tensor | None,
    outputs: RowOutputs,
    request: RowRequest,
    plan: Plan,
) -> None:
    """Everything but the gradient and the softmax of rows that are split over programs."""
    linear = compiled(request.terms).linear
    parts = _partials(view, target, request, plan, linear=linear, shard=False)
    sums = _sums(view, target, parts, request, plan)
    plan = plan._replace(block_k=1)
    _finish(view, parts, sums, target, term_weights, outputs, request, plan)


def shard_partials(logits: Tensor, target: Tensor, request: RowRequest) -> tuple[Tensor, Tensor]:
    """See ``Kernels.shard_partials``."""
    view = as_rows(logits)
    parts = _partials(view, target, request, plan_terms(view, 0), linear=True, shard=True)
    partials, best = _merged(view, parts)
    return partials, partials.new_empty((0,), dtype=torch.int64) if best is None else best


def shard_sums(logits: Tensor, target: Tensor, partials: Tensor, request: RowRequest) -> Tensor:
    """See ``Kernels.shard_sums``."""
    view = as_rows(logits)
    plan = plan_terms(view, compiled(request.terms).num_dense)
    sums = _sums(view, target, _one_part(partials), request, plan)
    return sums[:, 0] if sums.shape[1] == 1 else sums.sum(1)


def shard_finish(
    partials: Tensor,
    sums: Tensor,
    target: Tensor,
    term_weights: Tensor | None,
    request: RowRequest,
) -> RowOutputs:
    """See ``Kernels.shard_finish``."""
    outputs = empty_outputs(partials, target, request)
    parts, sums = _one_part(partials), sums.contiguous()
    view = as_rows(partials[:, :1])  # the rows; heads need no classes
    _finish(view, parts, sums, target, term_weights, outputs, request, FINISH)
    return outputs


def plan_terms(view: RowView, num_dense: int) -> Plan:
    """The plan for rows that may be split."""
    B, K, M = view.shape
    return plan_rows(B * M, K, view.class_first, view.tensor.dtype, num_dense)


def _one_part(partials: Tensor) -> Parts:
    return Parts(partials.contiguous()[:, None], None)


def _partials(
    view: RowView, target: Tensor, request: RowRequest, plan: Plan, *, linear: bool, shard: bool
) -> Parts:
    """(N, parts, NUM_PARTIALS), and the places of the maxima, (N, parts), if they are wanted."""
    N, part, splits = target.numel(), *_parts_of(view, plan)
    acc = accumulator_dtype(view.tensor.dtype)
    partials = view.tensor.new_empty((N, splits, NUM_PARTIALS), dtype=acc)
    best = partials.new_empty((N, splits), dtype=torch.int64) if request.wants("argmax") else None
    launch(
        split_partials_kernel,
        plan,
        view,
        triton.cdiv(N, plan.block_n) * splits,
        **labelled(view, target, request),
        PARTS=Parts(partials, best),
        SPLITS=splits,
        PART=part,
        SHARD=shard,
        TILE=plan.kind == "tile",
        LINEAR=linear,
        ALL_ROWS=request.reads_ignored,
    )
    return Parts(partials, best)


def _merged(view: RowView, parts: Parts) -> Parts:
    """Partials of parts of rows as those of one part."""
    partials, best = parts
    N, splits, _ = partials.shape
    if splits == 1:
        return Parts(partials[:, 0], None if best is None else best[:, 0])
    merged = Parts(torch.empty_like(partials[:, 0]), None if best is None else best.new_empty((N,)))
    block_s = triton.next_power_of_2(splits)
    launch(
        split_merge_kernel, MERGE, view, PARTS=parts, MERGED=merged, SPLITS=splits, BLOCK_S=block_s
    )
    return merged


def _sums(view: RowView, target: Tensor, parts: Parts, request: RowRequest, plan: Plan) -> Tensor:
    """(N, parts, 2 * number of dense terms); the partials' parts need not be the same ones."""
    num_dense = compiled(request.terms).num_dense
    N, part, splits = target.numel(), *_parts_of(view, plan)
    sums = parts.partials.new_empty((N, splits, 2 * num_dense))
    given = parts.partials.shape[1]
    if num_dense:
        launch(
            split_sums_kernel,
            for_sums(plan, view.tensor.dtype),
            view,
            triton.cdiv(N, plan.block_n) * splits,
            **labelled(view, target, request),
            PARTS=parts,
            SUMS=sums,
            GIVEN=given,
            SPLITS=splits,
            PART=part,
            **sum_of(request.terms),
            TILE=plan.kind == "tile",
            ALL_ROWS=request.reads_ignored,
            BLOCK_S=triton.next_power_of_2(given),
        )
    return sums


def _finish(
    view: RowView,
    parts: Parts,
    sums: Tensor,
    target: Tensor,
    term_weights: Tensor | None,
    outputs: RowOutputs,
    request: RowRequest,
    plan: Plan,
) -> None:
    splits = parts.partials.shape[1]
    launch(
        split_finish_kernel,
        plan,
        view,
        Y=target.reshape(-1),
        IGNORE=request.ignore_index,
        W=term_weights,
        OUT=outputs_of(outputs)["OUT"],
        PARTS=parts,
        SUMS=sums if sums.numel() else None,
        SPLITS=splits,
        **sum_of(request.terms),
        BLOCK_S=triton.next_power_of_2(splits),
    )


def _parts_of(view: RowView, plan: Plan) -> tuple[int, int]:
    """(classes in a part of a row, parts)."""
    K = view.shape[1]
    part = plan.part if plan.kind == "split" else K
    return part, triton.cdiv(K, part)
