"""The arguments that all forms of a loss share, checked and made into what is computed with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from anl_kernels import checks
from anl_kernels.backends.interface import accumulator_dtype
from anl_kernels.labels import is_ignored
from anl_kernels.options import Reduction, check_ignore_index, check_reduction, class_scale_at
from anl_kernels.sharding.dtensor import local_classes, replicated
from anl_kernels.sharding.shards import ClassShards
from anl_kernels.terms import CE, Term, Terms, as_terms

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Factors(NamedTuple):
    """What multiplies what."""

    terms: Terms
    """With their weights at this number of classes."""
    row_scale: Tensor
    """The factor of each row, or one (0-d) for all."""


def local_logits(
    logits: Tensor,
    target: Tensor,
    process_group: ProcessGroup | ClassShards | None,
    num_classes: int | None,
) -> tuple[Tensor, Tensor, ClassShards | None, int]:
    """Logits of the classes that are here, without padding; the target; how many there are."""
    dim = checks.class_dim(logits)
    logits, shards = local_classes("logits", logits, dim, process_group)
    target = replicated("target", target)
    here = logits.shape[dim]
    available = here if shards is None else shards.num_classes
    num_classes = checks.check_num_classes(num_classes, available, "logits", logits)
    if shards is not None:
        shards = shards.without_padding(num_classes)
    kept = num_classes if shards is None else shards.num_here
    return (logits if kept == here else logits.narrow(dim, 0, kept)), target, shards, num_classes


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
) -> Factors:
    """Check the keywords that all losses have, and make terms and factors of rows of them.

    ``like`` has the device of all tensors and the dtype of the logits.
    """
    check_reduction(reduction)
    check_ignore_index(ignore_index)
    num_counted = checks.check_labels_in_range(target, num_classes, ignore_index)
    scaled_terms = as_terms(terms).scaled(class_scale_at(class_scale, num_classes))
    for term in scaled_terms.terms:
        term.check_num_classes(num_classes)
    if weight is not None:
        checks.check_class_weight(weight, num_classes, like)
        _check_weighted_terms(scaled_terms)
    if sample_weight is not None:
        checks.check_sample_weight(sample_weight, target)
    row_scale = row_scale_of(
        like, target, weight, sample_weight, ignore_index, reduction, num_counted
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
) -> Tensor:
    """The factor of each row, or one (0-d) for all: weights over the divisor of the mean.

    ``num_counted`` is the number of rows that are not ignored, if it is known.
    """
    acc = accumulator_dtype(like.dtype)
    if weight is None and sample_weight is None and num_counted is not None:
        mean = reduction == "mean"
        factor = 1 / max(1, num_counted) if mean else 1.0
        return torch.scalar_tensor(factor, dtype=acc, device=like.device)
    ignored = is_ignored(target, ignore_index)
    scale = None
    if weight is not None:
        # The label may be ignore_index or, on a GPU, wrong; neither may become an address, nor
        # may the weight that is read instead count, infinite as it may be.
        scale = weight.to(acc)[target.clamp(0, weight.numel() - 1)].masked_fill(ignored, 0)
    if reduction == "mean":
        divisor = (~ignored).sum(dtype=acc) if scale is None else scale.sum()
        inverse = torch.where(divisor == 0, 0.0, 1 / divisor)
        scale = inverse if scale is None else scale * inverse
    if sample_weight is not None:
        factors = sample_weight.to(acc).masked_fill(ignored, 0)
        scale = factors if scale is None else scale * factors
    return like.new_ones((), dtype=acc) if scale is None else scale


def _check_weighted_terms(terms: Terms) -> None:
    for term in terms.terms:
        if isinstance(term, CE) and term.label_smoothing:
            raise ValueError(
                f"weight cannot be combined with CE(label_smoothing={term.label_smoothing}): "
                f"torch.nn.CrossEntropyLoss weighs the smoothed classes one by one, this library "
                f"weighs rows; set label_smoothing=0 or pass sample_weight=weight[target]"
            )
