"""Head and loss together as a function."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from anl_kernels import checks
from anl_kernels.arguments import factors_of
from anl_kernels.distributed.dtensor import is_dtensor
from anl_kernels.distributed.shards import ClassShards
from anl_kernels.execution import Aux, over_ranks
from anl_kernels.linear.arguments import (
    check_aux,
    check_chunk_bytes,
    check_softcap,
    local_head,
    skips_ignored,
    sum_dtype_of,
)
from anl_kernels.linear.execution import LinearCall, run
from anl_kernels.linear.mixed import run as run_mixed
from anl_kernels.linear.ops import HeadSpec
from anl_kernels.mixed.arguments import (
    check_mixed_shards,
    check_plain,
    check_soft_target,
    check_two_labels,
    is_mixed,
    is_soft,
    mixed_factors_of,
)
from anl_kernels.options import Reduction, check_ignore_index
from anl_kernels.terms import Term, Terms
from anl_kernels.watched import watched_labels

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
    class_scale: float | Literal["auto"] = 1.0,
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
    aux, ignore_index = check_aux(return_aux), check_ignore_index(ignore_index)
    mixed, soft = is_mixed(target, terms, weight, target_b, lam), is_soft(target)
    shares = target
    if mixed:
        check_plain(hidden=hidden, linear_weight=linear_weight, target=target)
    if soft:
        check_soft_target(
            target,
            _shape_of_logits(hidden, linear_weight),
            "the logits",
            ignore_index,
            target_b,
            lam,
        )
        checks.check_device("target", target, hidden)
        target = target.new_zeros(target.shape[:-1], dtype=torch.int64)
    head = local_head(hidden, linear_weight, linear_bias, target, process_group, num_classes)
    labels = watched_labels(head.target, head.num_classes, ignore_index)
    head = head._replace(target=labels)
    like = head.hidden.new_empty((0,), dtype=head.dtype)
    keywords: Any = {
        "weight": weight,
        "sample_weight": sample_weight,
        "ignore_index": ignore_index,
        "reduction": reduction,
        "class_scale": class_scale,
    }
    options = HeadSpec(
        softcap=check_softcap(logit_softcap) or 0.0,
        chunk_bytes=check_chunk_bytes(chunk_bytes) or 0,
        skip_ignored=skips_ignored(skip_ignored, like.device.type, aux),
        dtype=head.dtype,
        sum_dtype=sum_dtype_of(accum_dtype, head.weight.dtype),
        num_classes=head.num_here,
    )
    if mixed:
        check_mixed_shards(soft, terms, weight, head.shards)
        rows = head.target.shape
        check_two_labels(target_b, lam, rows)
        if target_b is not None:
            checks.check_labels_of(target_b, rows, "hidden", hidden, "target_b")
            target_b = watched_labels(target_b, head.num_classes, ignore_index, "target_b")
        labels = shares[..., : head.num_here] if soft else head.target
        mixture = mixed_factors_of(
            terms, like, labels, rows, head.num_classes, target_b=target_b, lam=lam, **keywords
        )
        loss, made = run_mixed(head, options, mixture, reduction != "none", aux)
        return (loss, made) if return_aux else loss
    factors = factors_of(terms, like, head.target, head.num_classes, rows=head.rows, **keywords)
    call = LinearCall(
        head=head,
        options=options,
        row_scale=factors.row_scale,
        terms=factors.terms,
        ignore_index=ignore_index,
        reduce=reduction != "none",
        aux=aux,
    )
    loss, made = run(call)
    if is_dtensor(hidden) or is_dtensor(linear_weight):
        loss, made = over_ranks(loss, made, head.rows)
    return (loss, made) if return_aux else loss


def _shape_of_logits(hidden: Tensor, linear_weight: Tensor) -> torch.Size:
    """What the head would make; the tensors are not yet checked."""
    return torch.Size((*hidden.shape[:-1], *linear_weight.shape[:1]))
