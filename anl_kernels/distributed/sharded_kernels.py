"""A backend on the logits of one rank: its kernels, with the exchanges that make rows whole."""

from __future__ import annotations

import torch
from torch import Tensor

from anl_kernels.distributed.class_shards import IGNORED, ClassShards
from anl_kernels.distributed.collectives import add_up_, gather
from anl_kernels.distributed.sharded_row import first_of_largest
from anl_kernels.interface import (
    AUX,
    BITS,
    NUM_PARTIALS,
    Kernels,
    RowOutputs,
    RowRequest,
    accumulator_dtype,
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
        asked = request.asking(
            "row_losses",
            "saved",
            *filter(request.wants, (*AUX, "denominators", "term_slopes")),
            *(("lse",) if request.wants("probs") else ()),
            ignore_index=IGNORED,
        )
        partials, argmax = self._partials(logits, target, here, asked)
        sums = self._sums(logits, here, partials, asked)
        of_rows = asked._replace(outputs=asked.outputs & ~BITS["argmax"])
        finished = self._kernels.shard_finish(partials, sums, here, term_weights, of_rows)
        made = finished._asdict() | {"argmax": argmax}
        if request.wants("loss"):
            made["loss"] = scaled_loss(made["row_losses"], target, row_scale, request)
        if request.wants("probs"):
            probs = _softmax(logits, made["lse"])
            made["probs"] = self.empty_like_rows(logits).copy_(probs)
        if request.wants("grad"):
            made["grad"] = grad = logits if request.inplace else self.empty_like_rows(logits)
            if logits.numel():
                self._kernels.row_grad_into(grad, logits, here, row_scale, made["saved"], asked)
        return RowOutputs(**{name: made[name] for name in request.names})

    def row_grad_into(
        self,
        grad: Tensor,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor,
        saved: Tensor,
        request: RowRequest,
    ) -> None:
        """See ``Backend.row_grad_into``; no exchange."""
        if logits.numel():
            here = self._shards.labels_here(target, request.ignore_index)
            asked = request._replace(ignore_index=IGNORED)
            self._kernels.row_grad_into(grad, logits, here, row_scale, saved, asked)

    def _partials(
        self, logits: Tensor, target: Tensor, here: Tensor, request: RowRequest
    ) -> tuple[Tensor, Tensor]:
        """Partials of whole rows, and the argmax if ``aux`` is asked for."""
        columns, best = self._partials_here(logits, here, request)
        label = target.reshape(-1).masked_fill((here == IGNORED).reshape(-1), IGNORED)
        told = [label, best + self._shards.first] if request.wants("argmax") else [label]
        packed = torch.cat([columns, *(_as_numbers(classes, columns) for classes in told)], -1)
        gathered = gather(packed, self._shards.group)
        columns = gathered[..., :NUM_PARTIALS]
        merged = merge_partials(columns)
        labels = _as_classes(gathered[..., NUM_PARTIALS])
        differs = (labels != labels[0]).any(0)
        self._check_labels(labels, differs)
        no_class = (label != IGNORED) & ((label < 0) | (label >= self._shards.num_classes))
        merged[:, 4].masked_fill_(differs | no_class, torch.nan)
        if not request.wants("argmax"):
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
        places = here.new_zeros(here.numel() if request.wants("argmax") else 0, dtype=torch.int64)
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


def merge_partials(shards: Tensor) -> Tensor:
    """Partials of whole rows, (N, 5), out of those of their shards, (W, N, 5).

    See :meth:`anl_kernels.interface.Kernels.shard_partials`, and docs/math.md, "Splitting and
    merging".
    """
    m, mass, total, count, z_y = shards.unbind(-1)
    m_all = m.amax(0)
    # A shard without a class has m = -inf, and so may the row: -inf - -inf would be NaN.
    below = torch.where(m == -torch.inf, 0.0, m - m_all)
    mass_all = (mass * below.exp()).sum(0)
    total_all = (total + count * below).sum(0)
    return torch.stack([m_all, mass_all, total_all, count.sum(0), z_y.amax(0)], dim=-1)


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
