"""A backend on the logits of one rank: its kernels, with the exchanges that make rows whole."""

from __future__ import annotations

import torch
from torch import Tensor

from anl_kernels.distributed.collectives import add_up_, gather
from anl_kernels.distributed.merge import merge_partials
from anl_kernels.distributed.row import first_of_largest
from anl_kernels.distributed.shards import IGNORED, ClassShards
from anl_kernels.interface import (
    NUM_PARTIALS,
    Kernels,
    RowOutputs,
    RowRequest,
    accumulator_dtype,
    empty_outputs,
    scaled_loss,
)


class ShardedKernels:
    """``Backend`` for logits of which each rank has some classes; all ranks call it together.

    Two exchanges a call: the partials of rows are gathered; then the sums of dense terms, if
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
        # What needs the lse of the row needs it, or the partials that hold it.
        asked = request._replace(
            ignore_index=IGNORED,
            write_saved=request.write_saved or request.write_grad,
            aux=request.aux or request.probs,
        )
        partials, argmax = self._partials(logits, target, here, asked)
        sums = self._sums(logits, here, partials, asked)
        made = self._kernels.shard_finish(partials, sums, here, term_weights, asked)
        outputs = empty_outputs(logits, target, request)
        if request.write_grad:
            grad = logits if request.inplace else outputs.grad
            self._row_grad(grad, logits, here, row_scale, made.saved, asked)
        if request.probs:
            outputs.probs.copy_(_softmax(logits, made.lse))
        loss = scaled_loss(made.row_losses, target, row_scale, request)
        outputs = outputs._replace(loss=loss, row_losses=made.row_losses)
        if request.write_saved:
            outputs = outputs._replace(saved=made.saved)
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
        saved: Tensor,
        request: RowRequest,
    ) -> None:
        """See ``Backend.row_grad``; no exchange."""
        here = self._shards.labels_here(target, request.ignore_index)
        asked = request._replace(ignore_index=IGNORED)
        self._row_grad(grad, logits, here, row_scale, saved, asked)

    def _row_grad(
        self,
        grad: Tensor,
        logits: Tensor,
        here: Tensor,
        row_scale: Tensor,
        saved: Tensor,
        request: RowRequest,
    ) -> None:
        if logits.numel():
            self._kernels.row_grad(grad, logits, here, row_scale, saved, request)

    def _partials(
        self, logits: Tensor, target: Tensor, here: Tensor, request: RowRequest
    ) -> tuple[Tensor, Tensor]:
        """Partials of whole rows, and the argmax if ``aux`` is asked for."""
        columns, best = self._partials_here(logits, here, request)
        label = target.reshape(-1).masked_fill((here == IGNORED).reshape(-1), IGNORED)
        told = [label, best + self._shards.first] if request.aux else [label]
        packed = torch.cat([columns, *(_as_numbers(classes, columns) for classes in told)], -1)
        gathered = gather(packed, self._shards.group)
        columns = gathered[..., :NUM_PARTIALS]
        merged = merge_partials(columns)
        labels = _as_classes(gathered[..., NUM_PARTIALS])
        differs = (labels != labels[0]).any(0)
        self._check_labels(labels, differs)
        no_class = (label != IGNORED) & ((label < 0) | (label >= self._shards.num_classes))
        merged[:, 4].masked_fill_(differs | no_class, torch.nan)
        if not request.aux:
            return merged, best
        others = _as_classes(gathered[..., NUM_PARTIALS + 1])
        label = label.clamp(min=0).unsqueeze(0).to(others.dtype)
        values = torch.cat([columns[..., 0], merged[None, :, 4]])
        return merged, first_of_largest(values, torch.cat([others, label]))

    def _partials_here(
        self, logits: Tensor, here: Tensor, request: RowRequest
    ) -> tuple[Tensor, Tensor]:
        if self._shards.num_here:
            return self._kernels.shard_partials(logits, here, request)
        dtype = accumulator_dtype(logits.dtype)
        columns = logits.new_zeros((here.numel(), NUM_PARTIALS), dtype=dtype)
        columns[:, 0] = columns[:, 4] = -torch.inf  # no largest class, no label
        places = here.new_zeros(here.numel() if request.aux else 0, dtype=torch.int64)
        return columns, places

    def _sums(self, logits: Tensor, here: Tensor, partials: Tensor, request: RowRequest) -> Tensor:
        num_dense = sum(self._kernels.is_dense(term.functor) for term in request.terms.terms)
        if not num_dense:
            return partials.new_empty((here.numel(), 0))
        if self._shards.num_here:
            sums = self._kernels.shard_sums(logits, here, partials, request)
        else:
            sums = partials.new_zeros((here.numel(), 2 * num_dense))
        return add_up_(sums, self._shards.group)

    def _check_labels(self, labels: Tensor, differs: Tensor) -> None:
        """On a CPU, where looking costs nothing, say what makes rows NaN: on every rank alike."""
        if labels.device.type != "cpu" or not differs.any():
            return
        row = int(differs.nonzero()[0])
        raise ValueError(
            f"target must be the same on all ranks of process_group, which share the classes of "
            f"the same rows: the labels of row {row} are {labels[:, row].tolist()} on its ranks "
            f"({IGNORED}: ignored). Ranks with rows of their own need no process_group: each "
            f"computes the loss of its own, or of all as a DTensor that is sharded on rows. A "
            f"weight that FSDP has sharded is no vocabulary-parallel weight: put the head into an "
            f"ak.LinearRobustLoss and let FSDP shard that"
        )


def _as_numbers(classes: Tensor, like: Tensor) -> Tensor:
    """Integers that travel as floats, bit for bit: (N, 1)."""
    integers = torch.int64 if like.dtype == torch.float64 else torch.int32
    return classes.to(integers).view(like.dtype).unsqueeze(-1)


def _as_classes(numbers: Tensor) -> Tensor:
    integers = torch.int64 if numbers.dtype == torch.float64 else torch.int32
    return numbers.contiguous().view(integers).long()


def _softmax(logits: Tensor, lse: Tensor) -> Tensor:
    dim = 1 if logits.dim() > 1 else 0
    shape = logits.shape[:dim] + logits.shape[dim + 1 :]
    return (logits.to(lse.dtype) - lse.view(shape).unsqueeze(dim)).exp()
