"""Head and loss together as a function."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anl_kernels import checks
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.distributed.local_parts import is_dtensor
from anl_kernels.linear.loss import linear_loss
from anl_kernels.linear.mixed import run as run_mixed
from anl_kernels.linear.operators import Projection
from anl_kernels.linear.prepare import local_operands, skips_ignored, sum_dtype_of
from anl_kernels.mixed.prepare import (
    check_mixed_shards,
    check_plain,
    check_soft_target,
    check_two_labels,
    is_mixed,
    is_soft,
    mixed_factors_of,
)
from anl_kernels.options import (
    ClassScale,
    Reduction,
    aux_outputs_of_head,
    check_chunk_bytes,
    check_ignore_index,
    check_softcap,
)
from anl_kernels.rows.balance import balanced_loss
from anl_kernels.rows.loss import Aux, over_ranks
from anl_kernels.rows.prepare import balance_of, row_scale_of, terms_at
from anl_kernels.terms import Term, Terms

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def linear_robust_loss(
    hidden: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    terms: Term | Terms,
    linear_bias: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    class_scale: ClassScale = 1.0,
    process_group: ProcessGroup | ClassShards | None = None,
    num_classes: int | None = None,
    return_aux: bool | Collection[str] = False,
    logit_softcap: float | None = None,
    chunk_bytes: int | None = None,
    accum_dtype: torch.dtype | None = None,
    skip_ignored: bool | None = None,
    target_b: Tensor | None = None,
    lam: float | Tensor | None = None,
) -> Tensor | tuple[Tensor, Aux]:
    """The loss of ``F.linear(hidden, linear_weight, linear_bias)``, which never exists as a whole.

    It is :func:`robust_loss` of those logits, a chunk of rows at a time: the extra memory is that
    of the gradients, and of one chunk. With "mean" and "sum" the gradients are computed along with
    the loss, by three matrix products; with "none", in float16 and in float64 backward computes
    the logits once more.

    Args:
        hidden: (..., D), float64, float32, float16 or bfloat16. A ``DTensor`` may be sharded on all
            dimensions but D, as :func:`robust_loss` takes logits.
        linear_weight: (K, D), of the same dtype, or of any under autocast. May be frozen, as
            hidden may: what needs no gradient costs no product.
        target: (...) class indices, int64 or int32; or (..., K) class probabilities, as for
            :func:`robust_loss`.
        terms: a term or a weighted sum of terms. A user's own term, which no kernel knows, is
            computed of all logits at once.
        linear_bias: (K,).
        weight: as for :func:`robust_loss`.
        sample_weight: as for :func:`robust_loss`.
        ignore_index: as for :func:`robust_loss`.
        reduction: as for :func:`robust_loss`.
        class_scale: as for :func:`robust_loss`.
        process_group: the ranks that share the classes, each with its own rows of the weight and
            of the bias; ``hidden`` is the same on all, and so is its gradient. A ``DTensor``
            weight sharded on its rows needs no argument; one that is replicated, or plain, beside
            rows over ranks receives the gradient of all rows.
        num_classes: the number of classes if the weight has more rows, a vocabulary's padding.
        return_aux: as for :func:`robust_loss`; "probs" is refused, since it is what is not to be.
        logit_softcap: c > 0 for logits ``c * tanh(logits / c)``.
        chunk_bytes: memory for the logits of a chunk, twice that with a softcap. By default 64 MiB
            on a CPU and 256 MiB on a GPU, more if a row is very long (docs/forms.md).
        accum_dtype: dtype in which the gradients of weight and bias are summed over chunks:
            float32 by default (float64 for float64), or the weight's own, which saves the sum's
            memory and rounds it once a chunk.
        skip_ignored: compute nothing for rows with ``ignore_index``. By default on a CPU; on a GPU
            the host waits to learn which they are.
        target_b: (...) second labels, as for :func:`robust_loss`: in one pass over the head.
        lam: as for :func:`robust_loss`. Where it requires grad, in compiled code, under transforms
            and where ranks share the classes the head is computed once for each label, and class
            probabilities and weights of smoothed classes take all logits at once.

    Returns:
        As :func:`robust_loss`; shapes are the target's.

    Raises:
        As :func:`robust_loss`, and ValueError where hidden, weight and bias do not fit.
    """
    aux, ignore_index = aux_outputs_of_head(return_aux), check_ignore_index(ignore_index)
    mixed, soft = is_mixed(target, terms, weight, target_b, lam), is_soft(target)
    shares = target
    if mixed:
        check_plain(hidden=hidden, linear_weight=linear_weight, target=target)
    if soft:
        shape = _shape_of_logits(hidden, linear_weight)
        check_soft_target(target, shape, "the logits", ignore_index, target_b, lam)
        checks.check_device("target", target, hidden)
        target = target.new_zeros(target.shape[:-1], dtype=torch.int64)
    operands = local_operands(
        hidden, linear_weight, linear_bias, target, process_group, num_classes
    )
    like = operands.hidden.new_empty((0,), dtype=operands.dtype)
    keywords: Any = {
        "weight": weight,
        "sample_weight": sample_weight,
        "ignore_index": ignore_index,
        "reduction": reduction,
    }
    projection = Projection(
        softcap=check_softcap(logit_softcap) or 0.0,
        chunk_bytes=check_chunk_bytes(chunk_bytes) or 0,
        skip_ignored=skips_ignored(skip_ignored, like.device.type, aux),
        dtype=operands.dtype,
        sum_dtype=sum_dtype_of(accum_dtype, operands.weight.dtype),
        num_classes=operands.num_here,
    )
    if mixed:
        check_mixed_shards(soft, terms, weight, operands.shards)
        rows = operands.target.shape
        check_two_labels(target_b, lam, rows)
        if target_b is not None:
            checks.check_labels_of(target_b, rows, "hidden", hidden, "target_b")
        mixture = mixed_factors_of(
            terms,
            like,
            shares[..., : operands.num_here] if soft else operands.target,
            rows,
            operands.num_classes,
            class_scale=class_scale,
            target_b=target_b,
            lam=lam,
            **keywords,
        )
        loss, made = run_mixed(operands, projection, mixture, reduction != "none", aux)
        return (loss, made) if return_aux else loss
    row_scale = row_scale_of(
        like, operands.target, operands.num_classes, rows=operands.rows, **keywords
    )
    scaled = terms_at(terms, operands.num_classes, class_scale, like, operands.rows)
    balance, reduce = balance_of(class_scale), reduction != "none"
    compute = partial(linear_loss, operands, projection, ignore_index=ignore_index, reduce=reduce)
    if balance is None:
        loss, made = compute(row_scale, scaled, aux=aux)
    else:
        loss, made = balanced_loss(
            balance,
            compute,
            row_scale,
            scaled,
            target=operands.target,
            num_classes=operands.num_classes,
            ignore_index=ignore_index,
            reduce=reduce,
            aux=aux,
            rows=operands.rows,
        )
    if is_dtensor(hidden) or is_dtensor(linear_weight):
        loss, made = over_ranks(loss, made, operands.rows)
    return (loss, made) if return_aux else loss


def _shape_of_logits(hidden: Tensor, linear_weight: Tensor) -> torch.Size:
    """What the projection would make; the tensors are not yet checked."""
    return torch.Size((*hidden.shape[:-1], *linear_weight.shape[:1]))
