"""The arguments that all forms of a loss share, checked and made into what is computed with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from anl_kernels import checks
from anl_kernels.distributed.dtensor import is_dtensor, local_part, of_all, of_rows
from anl_kernels.distributed.fsdp import warn_of_rounding
from anl_kernels.distributed.rows import RowShards
from anl_kernels.distributed.shards import ClassShards
from anl_kernels.interface import accumulator_dtype
from anl_kernels.labels import is_ignored
from anl_kernels.options import Reduction, check_reduction, class_scale_at
from anl_kernels.terms import Term, Terms, as_terms
from anl_kernels.terms.row import Row

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Factors(NamedTuple):
    """What multiplies what."""

    terms: Terms
    """With their weights at this number of classes."""
    row_scale: Tensor
    """The factor of each row, or one (0-d) for all."""


class LocalLogits(NamedTuple):
    """What a loss of this rank is given."""

    logits: Tensor
    """Of the rows and classes that are here, without padding."""
    shards: ClassShards | None
    """How the ranks share the classes, if they do."""
    rows: RowShards | None
    """How they share the rows, if they do."""
    num_classes: int
    """Of all ranks."""


def local_logits(
    logits: Tensor,
    process_group: ProcessGroup | ClassShards | None,
    num_classes: int | None,
) -> LocalLogits:
    """Of logits what is here."""
    dim = checks.class_dim(logits)
    logits, shards, rows = local_part("logits", logits, dim, process_group)
    here = logits.shape[dim]
    available = here if shards is None else shards.num_classes
    num_classes = checks.check_num_classes(num_classes, available, "logits", logits)
    if shards is not None:
        shards = shards.without_padding(num_classes)
    kept = num_classes if shards is None else shards.num_here
    logits = logits if kept == here else logits.narrow(dim, 0, kept)
    return LocalLogits(logits, shards, rows, num_classes)


def factors_of(
    terms: Term | Terms,
    like: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    class_scale: float | Literal["auto"],
    rows: RowShards | None = None,
) -> Factors:
    """Check the keywords that all losses have, and make terms and factors of rows of them.

    ``like`` has the device of all tensors and the dtype of the logits; ``target`` has the rows
    that are here.
    """
    check_reduction(reduction)
    num_counted = checks.check_labels_in_range(target, num_classes, ignore_index)
    scaled_terms = as_terms(terms).scaled(class_scale_at(class_scale, num_classes))
    for _, _, term in scaled_terms.parts:
        term.check_num_classes(num_classes)
    scaled_terms = _shared(scaled_terms, like, rows)
    if weight is not None:
        weight = of_all("weight", weight, rows)
        checks.check_class_weight(weight, num_classes, like)
    if sample_weight is not None:
        sample_weight = of_rows("sample_weight", sample_weight, rows)
        checks.check_sample_weight(sample_weight, target)
        warn_of_rounding(sample_weight)
    row_scale = row_scale_of(
        like, target, weight, sample_weight, ignore_index, reduction, num_counted, rows
    )
    return Factors(scaled_terms, row_scale)


def row_scale_of(
    like: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    num_counted: int | None = None,
    rows: RowShards | None = None,
) -> Tensor:
    """The factor of each row, or one (0-d) for all: weights over the divisor of the mean.

    ``num_counted`` is the number of rows that are not ignored, if it is known. ``rows`` says how
    ranks share the rows, over all of which the mean is.
    """
    acc = accumulator_dtype(like.dtype)
    mean = reduction == "mean"
    if rows is not None and mean:
        num_counted = None  # of this rank alone
    if weight is None and sample_weight is None and num_counted is not None:
        factor = 1 / max(1, num_counted) if mean else 1.0
        return torch.scalar_tensor(factor, dtype=acc, device=like.device)
    ignored = is_ignored(target, ignore_index)
    scale = None
    if weight is not None:
        # The label may be ignore_index or, on a GPU, wrong; neither may become an address, nor
        # may the weight that is read instead count, infinite as it may be.
        scale = weight.to(acc)[target.clamp(0, weight.numel() - 1)].masked_fill(ignored, 0)
    if mean:
        divisor = (~ignored).sum(dtype=acc) if scale is None else scale.sum()
        if rows is not None:
            # Before the kernels run: they write the gradient as it is then, rounded once.
            divisor = rows.total_for_rows(divisor)
        inverse = reciprocal(divisor)
        scale = inverse if scale is None else scale * inverse
    if sample_weight is not None:
        factors = sample_weight.to(acc).masked_fill(ignored, 0)
        scale = factors if scale is None else scale * factors
    return like.new_ones((), dtype=acc) if scale is None else scale


def reciprocal(divisor: Tensor) -> Tensor:
    """Of a mean's divisor: 0 if nothing counts, and so is its gradient."""
    return divisor.masked_fill(divisor == 0, math.inf).reciprocal()


def _shared(terms: Terms, like: Tensor, rows: RowShards | None) -> Terms:
    """The terms, with learned weights whose gradients are those of the rows of all ranks."""
    tensors = [tensor for tensor in terms.tensors if tensor is not None]
    if rows is None and not any(is_dtensor(tensor) for tensor in tensors):
        return terms
    if rows is not None:
        _check_learning(terms, like)
    name = "the weight of a term"
    shared = (
        None if tensor is None else of_all(name, tensor, rows, like.device)
        for tensor in terms.tensors
    )
    return Terms(terms.terms, terms.factors, tuple(shared))


def _check_learning(terms: Terms, like: Tensor) -> None:
    """A parameter inside a user's term would receive the gradient of this rank's rows alone."""
    for term in terms.terms:
        if term.may_have_kernel or not torch.is_grad_enabled():
            continue
        row = like.new_zeros((1, 2), dtype=accumulator_dtype(like.dtype))
        if term.rows(Row(row, row.new_zeros(1, dtype=torch.int64))).requires_grad:
            raise ValueError(
                f"{type(term).__name__} has something that is learned, whose gradient would be "
                f"that of this rank's rows alone: make the logits Replicate(), or let the "
                f"weight of the term learn"
            )
