"""The arguments of a loss of rows, checked, and made into what is computed with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from anl_kernels import checks
from anl_kernels.balance import Balance
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.distributed.local_parts import (
    is_dtensor,
    local_part,
    of_all,
    of_rows,
    warn_of_rounding,
)
from anl_kernels.distributed.row_shards import RowShards
from anl_kernels.interface import accumulator_dtype
from anl_kernels.labels import is_ignored
from anl_kernels.options import (
    ClassScale,
    Reduction,
    check_class_scale,
    check_reduction,
    class_scale_at,
)
from anl_kernels.rows.labels import label_scale
from anl_kernels.terms import Term, Terms, as_terms
from anl_kernels.terms.balanced import balanced
from anl_kernels.terms.row import Row

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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


class Prepared(NamedTuple):
    """What a loss is computed from."""

    local: LocalLogits
    target: Tensor
    """Of the rows that are here."""
    row_scale: Tensor
    """The factor of each row, or one (0-d) for all."""
    terms: Terms
    """With their weights at this number of classes."""
    balance: Balance | None
    """What brings their gradients to one size, where that is of a batch."""


def prepare(
    logits: Tensor,
    target: Tensor,
    terms: Term | Terms,
    *,
    process_group: ProcessGroup | ClassShards | None,
    num_classes: int | None,
    ignore_index: int,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    reduction: Reduction,
    class_scale: ClassScale,
) -> Prepared:
    """Every check of a loss of checked logits with one label a row."""
    local = local_logits(logits, process_group, num_classes)
    target = of_rows("target", target, local.rows)
    checks.check_target(target, local.logits)
    row_scale = row_scale_of(
        local.logits,
        target,
        local.num_classes,
        ignore_index=ignore_index,
        reduction=reduction,
        weight=weight,
        sample_weight=sample_weight,
        rows=local.rows,
    )
    scaled = terms_at(terms, local.num_classes, class_scale, local.logits, local.rows)
    return Prepared(local, target, row_scale, scaled, balance_of(class_scale))


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


def terms_at(
    terms: Term | Terms,
    num_classes: int,
    class_scale: ClassScale,
    like: Tensor,
    rows: RowShards | None = None,
) -> Terms:
    """The sum with its weights at a number of classes, where each of its terms has a meaning."""
    made = scaled_terms(as_terms(terms), num_classes, class_scale)
    learned = rows is not None or not made.plain
    return _shared(made, like, rows) if learned else made


def scaled_terms(terms: Terms, num_classes: int, class_scale: ClassScale) -> Terms:
    """:func:`terms_at`, whose weights this rank's rows alone may teach."""
    scale = check_class_scale(class_scale)
    by_row = isinstance(scale, Balance) and scale.over == "row"
    factor = 1.0 if isinstance(scale, Balance) else scale
    if torch.compiler.is_compiling() or type(num_classes) is not int:  # a symbol
        return _scaled(terms, num_classes, factor, by_row)
    return terms.derived(_scaled, num_classes, factor, by_row)


def balance_of(class_scale: ClassScale) -> Balance | None:
    """How gradients are balanced by a factor of the batch, if they are."""
    if type(class_scale) is float:
        return None
    scale = check_class_scale(class_scale)
    return scale if isinstance(scale, Balance) and scale.over != "row" else None


def _scaled(terms: Terms, num_classes: int, factor: float | Literal["auto"], by_row: bool) -> Terms:
    for _, _, term in terms.parts:
        term.check_num_classes(num_classes)
    return balanced(terms) if by_row else terms.scaled(class_scale_at(factor, num_classes))


def row_scale_of(
    like: Tensor,
    target: Tensor,
    num_classes: int | None,
    *,
    ignore_index: int,
    reduction: Reduction,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    rows: RowShards | None = None,
) -> Tensor:
    """The factor of each row, or one (0-d) for all: weights over the divisor of the mean.

    Checks the labels, too, unless ``num_classes`` is None. ``like`` has the device of all tensors
    and the dtype of the logits; ``rows`` says how ranks share the rows, over all of which the mean
    is.
    """
    acc = accumulator_dtype(like.dtype)
    mean = check_reduction(reduction) == "mean"
    counts_here = mean and weight is None and rows is None
    scale = label_scale(target, num_classes, ignore_index, acc, counts_here)
    if weight is None and sample_weight is None and (counts_here or not mean):
        return scale
    ignored = is_ignored(target, ignore_index)
    if weight is not None:
        weight = of_all("weight", weight, rows)
        if num_classes is not None:
            checks.check_class_weight(weight, num_classes, like)
        # The label may be ignore_index or, on a GPU, wrong; neither may become an address, nor
        # may the weight that is read instead count, infinite as it may be.
        factors = weight.to(acc)[target.clamp(0, weight.numel() - 1)].masked_fill(ignored, 0)
        scale = scale * factors
    if mean and not counts_here:
        divisor = (~ignored).sum(dtype=acc) if weight is None else scale.sum()
        if rows is not None:
            # Before the kernels run: they write the gradient as it is then, rounded once.
            divisor = rows.total_for_rows(divisor)
        scale = scale * reciprocal(divisor)
    if sample_weight is not None:
        sample_weight = of_rows("sample_weight", sample_weight, rows)
        checks.check_sample_weight(sample_weight, target)
        warn_of_rounding(sample_weight)
        scale = scale * sample_weight.to(acc).masked_fill(ignored, 0)
    return scale


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
