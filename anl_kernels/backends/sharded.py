"""A backend on the logits of one rank: its kernels, with the exchanges that make rows whole."""

from __future__ import annotations

import torch
from torch import Tensor

from anl_kernels.backends.interface import (
    Kernels,
    RowOutputs,
    RowRequest,
    accumulator_dtype,
    empty_outputs,
    scaled_loss,
)
from anl_kernels.sharding.collectives import add_up_, gather
from anl_kernels.sharding.merge import merge_statistics
from anl_kernels.sharding.row import first_of_largest
from anl_kernels.sharding.shards import IGNORED, ClassShards


class ShardedKernels:
    """``Backend`` for logits of which each rank has some classes; all ranks call it together.

    Two exchanges a call: the statistics of rows are gathered; then the sums of dense terms, if
    there are any, are added up.
    """

    def __init__(self, kernels: Kernels, shards: ClassShards) -> None:
        self._kernels = kernels
        self._shards = shards
        self.knows = kernels.knows
        self.empty_like_rows = kernels.empty_like_rows
        self.scale_ = kernels.scale_

    def row_loss(
        self,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor,
        term_weights: Tensor | None,
        request: RowRequest,
    ) -> RowOutputs:
        """See ``Backend.row_loss``."""
        here = self._shards.labels_here(target, request.ignore_index)
        # What needs the lse of the row needs it, or the statistics that hold it.
        asked = request._replace(
            ignore_index=IGNORED,
            write_stats=request.write_stats or request.write_grad,
            aux=request.aux or request.probs,
        )
        statistics, argmax = self._statistics(logits, target, here, asked)
        sums = self._sums(logits, here, statistics, asked)
        made = self._kernels.shard_finish(statistics, sums, here, term_weights, asked)
        outputs = empty_outputs(logits, target, request)
        if request.write_grad:
            grad = logits if request.inplace else outputs.grad
            self._row_grad(grad, logits, here, row_scale, made.stats, asked)
        if request.probs:
            outputs.probs.copy_(_softmax(logits, made.lse))
        loss = scaled_loss(made.row_losses, target, row_scale, request)
        outputs = outputs._replace(loss=loss, row_losses=made.row_losses)
        if request.write_stats:
            outputs = outputs._replace(stats=made.stats)
        if not request.aux:
            return outputs
        return outputs._replace(
            term_losses=made.term_losses, lse=made.lse, p_y=made.p_y, argmax=argmax
        )

    def row_grad(
        self,
        grad: Tensor,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor,
        stats: Tensor,
        request: RowRequest,
    ) -> None:
        """See ``Backend.row_grad``; no exchange."""
        here = self._shards.labels_here(target, request.ignore_index)
        asked = request._replace(ignore_index=IGNORED)
        self._row_grad(grad, logits, here, row_scale, stats, asked)

    def _row_grad(
        self,
        grad: Tensor,
        logits: Tensor,
        here: Tensor,
        row_scale: Tensor,
        stats: Tensor,
        request: RowRequest,
    ) -> None:
        if logits.numel():
            self._kernels.row_grad(grad, logits, here, row_scale, stats, request)

    def _statistics(
        self, logits: Tensor, target: Tensor, here: Tensor, request: RowRequest
    ) -> tuple[Tensor, Tensor]:
        """Statistics of whole rows, and the argmax if ``aux`` is asked for."""
        columns, best = self._statistics_here(logits, here, request)
        owned = (here >= 0).reshape(-1, 1).to(columns.dtype)
        packed = torch.cat([columns, owned, *_as_numbers(best + self._shards.first, columns)], -1)
        gathered = gather(packed, self._shards.group)
        columns = gathered[..., :5]
        merged = merge_statistics(columns)
        counted = (here != IGNORED).reshape(-1)
        owners = gathered[..., 5].sum(0)
        self._check_owners(target, counted, owners)
        merged[:, 4].masked_fill_(counted & (owners != 1), torch.nan)
        if not request.aux:
            return merged, best
        others = _as_classes(gathered[..., 6])
        label = target.reshape(1, -1).clamp(min=0).to(others.dtype)
        values = torch.cat([columns[..., 0], merged[None, :, 4]])
        return merged, first_of_largest(values, torch.cat([others, label]))

    def _statistics_here(
        self, logits: Tensor, here: Tensor, request: RowRequest
    ) -> tuple[Tensor, Tensor]:
        if self._shards.num_here:
            return self._kernels.shard_statistics(logits, here, request)
        nothing = [-torch.inf, 0.0, 0.0, 0.0, -torch.inf]
        row = torch.tensor(nothing, dtype=accumulator_dtype(logits.dtype), device=logits.device)
        places = here.new_zeros(here.numel() if request.aux else 0, dtype=torch.int64)
        return row.repeat(here.numel(), 1), places

    def _sums(
        self, logits: Tensor, here: Tensor, statistics: Tensor, request: RowRequest
    ) -> Tensor:
        num_dense = sum(self._kernels.is_dense(term.functor) for term in request.terms.terms)
        if not num_dense:
            return statistics.new_empty((here.numel(), 0))
        if self._shards.num_here:
            sums = self._kernels.shard_sums(logits, here, statistics, request)
        else:
            sums = statistics.new_zeros((here.numel(), 2 * num_dense))
        return add_up_(sums, self._shards.group)

    def _check_owners(self, target: Tensor, counted: Tensor, owners: Tensor) -> None:
        """On a CPU, where looking costs nothing, say what else makes a row NaN."""
        if target.device.type != "cpu" or not target.numel():
            return
        label = target.reshape(-1)
        is_class = (label >= 0) & (label < self._shards.num_classes)
        wrong = counted & (owners != is_class)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"target must be the same on all ranks of process_group, which share the classes "
                f"of the same rows: {int(owners[row])} ranks found the label of row {row} among "
                f"their classes (here it is {int(label[row])}). With data parallelism give a group "
                f"of the ranks that share a batch; a weight that FSDP has sharded is no "
                f"vocabulary-parallel weight: take weight.full_tensor()"
            )


def _as_numbers(classes: Tensor, like: Tensor) -> list[Tensor]:
    """Integers that travel as floats, bit for bit: (N, 1), or nothing if there are none."""
    if not classes.numel():
        return []
    integers = torch.int64 if like.dtype == torch.float64 else torch.int32
    return [classes.to(integers).view(like.dtype).unsqueeze(-1)]


def _as_classes(numbers: Tensor) -> Tensor:
    integers = torch.int64 if numbers.dtype == torch.float64 else torch.int32
    return numbers.contiguous().view(integers).long()


def _softmax(logits: Tensor, lse: Tensor) -> Tensor:
    dim = 1 if logits.dim() > 1 else 0
    shape = logits.shape[:dim] + logits.shape[dim + 1 :]
    return (logits.to(lse.dtype) - lse.view(shape).unsqueeze(dim)).exp()
