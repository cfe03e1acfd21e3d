"""The arguments of losses with more than one label a row: checked, and made into a mixture."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from anl_kernels import checks
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.distributed.local_parts import is_dtensor
from anl_kernels.interface import accumulator_dtype
from anl_kernels.mixed.mixture import Distribution, Mixture, smooths, split, without_smoothing
from anl_kernels.numbers import as_number, shown
from anl_kernels.options import ClassScale, Reduction, check_ignore_index, check_reduction
from anl_kernels.rows.labels import label_scale
from anl_kernels.rows.prepare import balance_of, reciprocal, terms_at
from anl_kernels.terms import Term, Terms, as_terms
from anl_kernels.terms.row import may_ask

Lam = float | Tensor


class MixedFactors(NamedTuple):
    """A mixture, and what auxiliary outputs are of."""

    mixture: Mixture
    terms: Terms
    """With their weights at this number of classes."""
    shares: tuple[Tensor | float, ...]
    """The share of each label."""


def is_mixed(
    target: object, terms: Term | Terms, weight: Tensor | None, target_b: object, lam: object
) -> bool:
    """Whether a loss is of more than one label a row, arguments not yet checked."""
    if target_b is not None or lam is not None or is_soft(target):
        return True
    return weight is not None and smooths(as_terms(terms))


def is_soft(target: object) -> bool:
    """Whether a target is of shares of the classes, not of class indices."""
    return isinstance(target, Tensor) and target.is_floating_point()


def check_soft_target(
    target: Tensor, shape: torch.Size, name: str, ignore_index: int, target_b: object, lam: object
) -> None:
    """Raise unless a floating target can hold the shares of the classes of every row."""
    checks.check_dense("target", target)
    if target.dim() != len(shape):
        raise TypeError(
            f"target must be int64 or int32 class indices, or floating class probabilities of the "
            f"shape of {name}, {tuple(shape)}; got {target.dtype} of shape {tuple(target.shape)}: "
            f"convert class indices with .long()"
        )
    if target.shape != shape:
        raise ValueError(
            f"target of class probabilities must have the shape of {name}, {tuple(shape)}, got "
            f"{tuple(target.shape)}"
        )
    if target_b is not None or lam is not None:
        raise TypeError(
            "target_b and lam are for class indices; class probabilities are mixed before the "
            "call: lam * target + (1 - lam) * target_b"
        )
    if ignore_index >= 0:
        raise ValueError(
            f"ignore_index={ignore_index} has no meaning for class probabilities: leave it out; a "
            f"row of zeros, or a sample_weight of 0, adds nothing to the loss, but counts in a mean"
        )


def check_plain(**tensors: Any) -> None:
    """Raise ValueError if one of the named tensors is a DTensor, where there are several labels."""
    for name, tensor in tensors.items():
        if is_dtensor(tensor):
            raise ValueError(
                f"{name} must be a plain tensor where rows have several labels (class "
                f"probabilities, target_b, or weight with CE(label_smoothing > 0)), got a DTensor: "
                f"pass {name}.full_tensor(), or to_local() and process_group for classes over ranks"
            )


def check_mixed_shards(
    soft: bool, terms: Term | Terms, weight: Tensor | None, shards: ClassShards | None
) -> None:
    """Raise ValueError where ranks share classes of which a loss would need all."""
    if shards is None:
        return
    if soft:
        raise ValueError(
            "target of class probabilities needs whole rows, and here ranks share the classes: "
            "pass class indices (two of them with target_b and lam), or gather the logits"
        )
    if weight is not None and smooths(as_terms(terms)):
        raise ValueError(
            "weight with CE(label_smoothing > 0) needs whole rows, and here ranks share the "
            "classes: set label_smoothing=0, or weigh rows with sample_weight=weight[target]"
        )


def check_two_labels(target_b: object, lam: object, rows: torch.Size) -> None:
    """Raise unless there are both a second label and its share, or neither."""
    if (target_b is None) != (lam is None):
        given, missing = ("lam", "target_b") if target_b is None else ("target_b", "lam")
        raise TypeError(
            f"{given} needs {missing}: the loss is lam times that of target, plus (1 - lam) times "
            f"that of target_b"
        )
    if lam is None:
        return
    if isinstance(lam, Tensor):
        checks.check_floating("lam", lam)
        if lam.dim() and lam.shape not in (rows, rows[:1]):
            raise ValueError(
                f"lam must be a number, a 0-d tensor, or one number for each row, of shape "
                f"{tuple(rows)} or {tuple(rows[:1])}; got {tuple(lam.shape)}"
            )
        if may_ask(lam) and bool(((lam < 0) | (lam > 1)).any()):
            raise ValueError("lam must be in [0, 1], the share of target; got a tensor beyond")
        return
    share = as_number(lam)
    if share is None:
        raise TypeError(f"lam must be a number or a tensor, got {shown(lam)}")
    if not 0 <= share <= 1:
        raise ValueError(f"lam must be in [0, 1], the share of target, got {shown(lam)}")


def mixed_factors_of(
    terms: Term | Terms,
    like: Tensor,
    target: Tensor,
    rows: torch.Size,
    num_classes: int,
    *,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    class_scale: ClassScale,
    target_b: Tensor | None,
    lam: Lam | None,
) -> MixedFactors:
    """Check the keywords that all losses have, and make the mixture of them.

    ``target`` holds class indices, of the shape ``rows``, or shares of ``num_classes`` classes,
    both checked; ``like`` has the device of all tensors and the dtype of the logits.
    """
    check_reduction(reduction)
    check_ignore_index(ignore_index)
    if balance_of(class_scale) is not None:
        raise ValueError(
            f"class_scale={shown(class_scale)} is for one label a row; of several labels pass "
            f"class_scale='row', which is the same for each of them, or a number"
        )
    made = terms_at(terms, num_classes, class_scale, like)
    if weight is not None:
        checks.check_class_weight(weight, num_classes, like)
    base = like.new_zeros(rows, dtype=torch.int64) if is_soft(target) else target.long()
    if sample_weight is not None:
        checks.check_sample_weight(sample_weight, base)
    acc = accumulator_dtype(like.dtype)
    factor = None if sample_weight is None else sample_weight.to(acc)
    if is_soft(target):
        scale = like.new_full((), 1 / max(1, rows.numel()) if reduction == "mean" else 1, dtype=acc)
        scale = scale if factor is None else scale * factor
        soft = Distribution(target, weight, *split(made))
        return MixedFactors(Mixture(made, -100, (), (), soft, scale, base), made, ())
    # In int64, so that an ignore_index outside int32 is no other label.
    target, target_b = target.long(), None if target_b is None else target_b.long()
    labels: tuple[Tensor, ...] = (target,) if target_b is None else (target, target_b)
    shares = (1.0,) if lam is None else _shares(lam, rows, acc)
    checked = [
        label_scale(label, num_classes, ignore_index, acc, argument=name)
        for name, label in zip(("target", "target_b"), labels, strict=False)
    ]
    labels = tuple(_shared(label, share, ignore_index) for label, share in _pairs(labels, shares))
    counted = [
        # The factor of 1 that the check of labels makes keeps it where code is compiled.
        _counted(label, share, ignore_index, acc) * one
        for (label, share), one in _pairs(_pairs(labels, shares), checked)
    ]
    scales = counted
    if weight is not None:
        of_labels = [_of_label(weight, label, ignore_index, acc) for label in labels]
        scales = [part * of_label for part, of_label in _pairs(counted, of_labels)]
    if reduction == "mean":
        divisor = torch.stack([scale.sum() for scale in scales]).sum()
        inverse = reciprocal(divisor)
        counted, scales = [[part * inverse for part in parts] for parts in (counted, scales)]
    base = labels[0]
    if len(labels) > 1:
        base = torch.where(base == ignore_index, labels[1], base)
    if factor is not None:
        factor = factor.masked_fill(base == ignore_index, 0)
        counted, scales = [[part * factor for part in parts] for parts in (counted, scales)]
    distribution: Distribution | None = None
    spread_scale, own = None, made
    if weight is not None and smooths(made):
        own, spread = without_smoothing(made)
        distribution = Distribution(None, weight, 0.0, spread, None)
        spread_scale = torch.stack(counted).sum(0)
    mixture = Mixture(own, ignore_index, labels, tuple(scales), distribution, spread_scale, base)
    return MixedFactors(mixture, made, shares)


def _pairs(first, second):  # type: ignore[no-untyped-def]
    return list(zip(first, second, strict=True))


def _shares(lam: Lam, rows: torch.Size, acc: torch.dtype) -> tuple[Lam, Lam]:
    if not isinstance(lam, Tensor):
        return float(lam), 1 - float(lam)
    lam = lam.to(acc)
    if lam.dim() and lam.shape != rows:
        lam = lam.view(-1, *(1,) * (len(rows) - 1)).expand(rows)
    return lam, 1 - lam


def _counted(label: Tensor, share: Lam, ignore_index: int, acc: torch.dtype) -> Tensor:
    """The share of a label, 0 in the rows where it does not count."""
    counts = (label != ignore_index).to(acc)
    # Whatever the share is in a row that does not count.
    return (counts * share).masked_fill(label == ignore_index, 0)


def _shared(label: Tensor, share: Lam, ignore_index: int) -> Tensor:
    """A label, ignored where its share is 0: its loss may be infinite.

    A share that is learned needs the loss for its gradient all the same.
    """
    if isinstance(share, Tensor):
        return label if share.requires_grad else label.masked_fill(share == 0, ignore_index)
    return label if share else torch.full_like(label, ignore_index)


def _of_label(weight: Tensor, label: Tensor, ignore_index: int, acc: torch.dtype) -> Tensor:
    # The label may be ignore_index or, on a GPU, wrong; neither may become an address, nor may the
    # weight that is read instead count, infinite as it may be.
    factors = weight.to(acc)[label.clamp(0, weight.numel() - 1)]
    return factors.masked_fill(label == ignore_index, 0)
