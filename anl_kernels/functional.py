"""The losses as functions: shapes, reductions and weights as PyTorch has them; no kernels."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from typing_extensions import Unpack

from anl_kernels import checks
from anl_kernels.backends import reference
from anl_kernels.backends.choice import REFERENCE, choose_backend
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.distributed.local_parts import (
    is_dtensor,
    spread_classes,
    spread_like,
    whole_rows,
)
from anl_kernels.mixed.loss import run as run_mixed
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
    LossOptions,
    Reduction,
    aux_outputs,
    check_ignore_index,
    check_inplace_flag,
)
from anl_kernels.rows.autograd import SoftmaxFunction, apply
from anl_kernels.rows.balance import balanced_loss, row_loss_of_batch
from anl_kernels.rows.loss import Aux, over_ranks, row_loss
from anl_kernels.rows.plain import plain_loss
from anl_kernels.rows.prepare import local_logits, prepare
from anl_kernels.terms import NCE, NNCE, Term, Terms

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def robust_loss(
    logits: Tensor,
    target: Tensor,
    terms: Term | Terms,
    *,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    class_scale: ClassScale = 1.0,
    inplace: bool = False,
    process_group: ProcessGroup | ClassShards | None = None,
    num_classes: int | None = None,
    return_aux: bool | Collection[str] = False,
    target_b: Tensor | None = None,
    lam: float | Tensor | None = None,
) -> Tensor | tuple[Tensor, Aux]:
    """A weighted sum of terms, with the conventions of ``torch.nn.functional.cross_entropy``.

    Args:
        logits: (K,), (N, K) or (N, K, d1, ...); float64, float32, float16 or bfloat16; any
            strides. A logit of -inf is a class that is not there.
        target: class indices, int64 or int32, of the logits' shape less K; or class
            probabilities t, of any floating dtype and of the logits' shape: the loss of a row is
            then ``sum_k t_k w_k L_k``, L_k its loss with label k and w ``weight``. They need not
            sum to 1, and may require grad. Cross entropy of them is fused; other terms are computed
            by their formulas, of a chunk of rows at a time.
        terms: a term or a weighted sum of terms, such as ``5.0 * NCE() + 5.0 * NNCE()``.
        weight: (K,) factors on the loss of rows with each label. ``CE(label_smoothing > 0)`` has
            torch's meaning: each of the smoothed classes is weighed with its own factor.
        sample_weight: factors on the loss of each row, of the target's shape. May require grad.
        ignore_index: label of rows that do not count; need not be a valid class. Class
            probabilities have none: only a negative one, which means nothing, goes with them.
        reduction: "mean" divides the sum by the summed class weights of the rows that count (their
            number without ``weight``); ``sample_weight`` does not enter the divisor. With no row
            that counts the loss is 0 and so is its gradient. With class probabilities it divides by
            the number of rows, ``weight`` or not. "none" gives one loss for each row.
        class_scale: factor on the normalised terms (NCE, NNCE, NFL, NNFL, NGCE), whose gradients
            shrink as 1/K; or "row", "batch" or "running" (:class:`Balance`): their gradients, not
            their values, times what they are divided by, of each row, on average over the batch or
            over earlier batches. "auto", for the number ``K log K / (10 log 10)``, is deprecated.
        inplace: let the gradient overwrite the logits, to save their size in memory. Nothing may
            read them after the call. Who saved them for backward before it raises then, and a
            second backward does too. Where PyTorch would not notice, the call raises. The
            reference backend and compiled code do not use the permission.
        process_group: the ranks that share the classes of these rows, each with its own columns
            of the logits: a process group, or a :class:`ClassShards`, which spares a question to
            all ranks in every call. Target, weights and results are the same on all of them,
            ``probs`` apart; each gets the gradient of its columns. Logits that are a ``DTensor``
            need no argument: they say how their classes, and their rows, are spread over ranks.
        num_classes: the number of classes if the logits have more columns, a vocabulary's padding:
            those count in nothing and their gradient is 0. Of all ranks together.
        return_aux: also return :class:`Aux` with term losses, lse, p_y and argmax, or only what
            a collection of its field names asks for ("probs", "denominators", "entropy" and
            "log_p_y" only so; the entropy is one more sweep over a row). Of several labels
            ``term_losses``, ``p_y`` and ``log_p_y`` are sums weighed with their shares, in passes
            of their own.
        target_b: second labels, like ``target``, as mixup and CutMix make them. A row's loss is
            ``lam L(target) + (1 - lam) L(target_b)``, with one gradient for both. A label that is
            ``ignore_index`` adds nothing, and "mean" divides by what the labels that count add up
            to, each its share times its class weight.
        lam: the share of ``target``: a number in [0, 1], a 0-d tensor, or one for each row, (N,) or
            of the target's shape. May require grad.

    Returns:
        The loss, float32 (float64 for float64 logits), 0-d or, for "none", of the target's shape;
        with ``return_aux`` a pair of it and an :class:`Aux`. Of a ``DTensor`` with rows over ranks
        "mean" and "sum" are plain tensors, those of all rows, the same on every rank; "none" and
        the fields of ``Aux`` are DTensors that lie as the rows do (docs/forms.md, "Rows over
        ranks").

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit, a parameter is out of range at this K, or a
            DTensor is a partial sum or lies otherwise than the rows.
        IndexError: a label is outside [0, K) and not ``ignore_index``. On a GPU only inside
            :func:`check_labels`; otherwise the row's loss is NaN there.
        RuntimeError: the backend asked for with :func:`use_backend` cannot run; or ``inplace`` with
            logits of a compiled function or of a DTensor, or inside a saved-tensor hook, such as
            ``checkpoint(use_reentrant=False)``.
    """
    if (
        weight is sample_weight is process_group is num_classes is target_b is lam is None
        and inplace is return_aux is False
        and not is_compiling()
    ):
        loss = plain_loss(logits, target, terms, ignore_index, reduction, class_scale)
        if loss is not None:
            return loss
    checks.check_floating_logits(logits)
    ignore_index = check_ignore_index(ignore_index)
    if inplace is not False:
        # In compiled code everybody has tensors of their own.
        inplace = check_inplace_flag(inplace) and not torch.compiler.is_compiling()
        if inplace and logits.requires_grad and torch.is_grad_enabled():
            checks.check_inplace(logits)
    if is_mixed(target, terms, weight, target_b, lam):
        return _mixed_loss(
            logits,
            target,
            terms,
            weight=weight,
            sample_weight=sample_weight,
            ignore_index=ignore_index,
            reduction=reduction,
            class_scale=class_scale,
            inplace=inplace,
            process_group=process_group,
            num_classes=num_classes,
            return_aux=return_aux,
            target_b=target_b,
            lam=lam,
        )
    made = prepare(
        logits,
        target,
        terms,
        process_group=process_group,
        num_classes=num_classes,
        ignore_index=ignore_index,
        weight=weight,
        sample_weight=sample_weight,
        reduction=reduction,
        class_scale=class_scale,
    )
    local, reduce, wanted = made.local, reduction != "none", aux_outputs(return_aux)
    options: Any = {
        "ignore_index": ignore_index,
        "reduce": reduce,
        "inplace": inplace,
        "shards": local.shards,
    }
    rows = local.logits, made.target
    if made.balance is None:
        loss, aux = row_loss(*rows, made.row_scale, made.terms, aux=wanted, **options)
    else:
        loss, aux = balanced_loss(
            made.balance,
            partial(row_loss, *rows, **options),
            made.row_scale,
            made.terms,
            of_batch=partial(row_loss_of_batch, *rows, **options),
            target=made.target,
            num_classes=local.num_classes,
            ignore_index=ignore_index,
            reduce=reduce,
            aux=wanted,
            rows=local.rows,
        )
    if is_dtensor(logits):
        loss, aux = over_ranks(loss, aux, local.rows)
        if local.rows is not None and aux.probs is not None:
            probs = spread_classes(logits, aux.probs, local.num_classes)
            aux = replace(aux, probs=probs)
    return (loss, aux) if return_aux else loss


def _mixed_loss(
    logits: Tensor,
    target: Tensor,
    terms: Term | Terms,
    *,
    target_b: Tensor | None,
    lam: float | Tensor | None,
    inplace: bool,
    process_group: ProcessGroup | ClassShards | None,
    num_classes: int | None,
    return_aux: bool | Collection[str],
    **factors: Any,
) -> Tensor | tuple[Tensor, Aux]:
    """:func:`robust_loss` of more than one label a row."""
    soft = is_soft(target)
    if soft:
        check_soft_target(target, logits.shape, "logits", factors["ignore_index"], target_b, lam)
    given = logits
    check_plain(logits=logits, target=target)
    logits, shards, _, num_classes = local_logits(given, process_group, num_classes)
    dim = checks.class_dim(logits)
    rows = logits.shape[:dim] + logits.shape[dim + 1 :]
    check_mixed_shards(soft, terms, factors["weight"], shards)
    if soft:
        checks.check_device("target", target, logits)
        target = target.narrow(dim, 0, logits.shape[dim])
    else:
        checks.check_target(target, logits)
    check_two_labels(target_b, lam, rows)
    if target_b is not None:
        checks.check_labels_of(target_b, rows, "logits", logits, "target_b")
    made = mixed_factors_of(
        terms, logits, target, rows, num_classes, target_b=target_b, lam=lam, **factors
    )
    loss, aux = run_mixed(
        logits,
        made,
        reduce=factors["reduction"] != "none",
        inplace=inplace,
        aux=aux_outputs(return_aux),
        shards=shards,
    )
    return (loss, aux) if return_aux else loss


def nce(logits: Tensor, target: Tensor, **options: Unpack[LossOptions]) -> Tensor:
    """Normalised cross entropy: :func:`robust_loss` of :class:`NCE`."""
    return robust_loss(logits, target, _kept(NCE), **options)  # type: ignore[return-value]


def nnce(
    logits: Tensor,
    target: Tensor,
    min_prob: float = 1e-7,
    prob_max: float = 1.0,
    **options: Unpack[LossOptions],
) -> Tensor:
    """Normalised negative cross entropy: :func:`robust_loss` of :class:`NNCE`."""
    terms = _kept(NNCE, min_prob, prob_max)
    return robust_loss(logits, target, terms, **options)  # type: ignore[return-value]


def anl(
    logits: Tensor,
    target: Tensor,
    alpha: float = 5.0,
    beta: float = 5.0,
    min_prob: float = 1e-7,
    **options: Unpack[LossOptions],
) -> Tensor:
    """Active negative loss (ANL-CE): :func:`robust_loss` of ``alpha NCE + beta NNCE``."""
    terms = _kept(_anl, alpha, beta, min_prob)
    return robust_loss(logits, target, terms, **options)  # type: ignore[return-value]


def _anl(alpha: float, beta: float, min_prob: float) -> Terms:
    return alpha * NCE() + beta * NNCE(min_prob)


def _kept(make: Callable[..., Term | Terms], *numbers: float) -> Term | Terms:
    """``make(*numbers)``, made once for each: 45 us of ANL, and what is derived of it is kept."""
    if is_compiling() or any(type(number) is not float for number in numbers):
        return make(*numbers)
    return _made(make, *numbers)


@lru_cache(maxsize=64)
def _made(make: Callable[..., Term | Terms], *numbers: float) -> Term | Terms:
    return make(*numbers)


def softmax(logits: Tensor, dim: int = -1) -> Tensor:
    """Softmax over ``dim``, as ``torch.softmax``: one read of the logits, one write.

    Args:
        logits: float64, float32, float16 or bfloat16, any shape but 0-d, any strides; a ``DTensor``
            that has whole classes on every rank too.
        dim: the dimension of the classes.

    Returns:
        Probabilities of the logits' shape and dtype; arithmetic is float32 (float64 for float64).
        Differentiable twice. A ``DTensor`` that lies as the logits do, if they are one.

    Raises:
        TypeError: logits are not floating, or dim is no int.
        ValueError: a DTensor is sharded on ``dim``, or a partial sum.
        IndexError: dim is out of range.
        RuntimeError: the backend asked for with :func:`use_backend` cannot run.
    """
    checks.check_floating_logits(logits)
    dim = checks.check_dim(dim, logits)
    if is_dtensor(logits):
        return spread_like(logits, softmax(whole_rows("logits", logits, dim)[0], dim))
    backend = choose_backend(logits, dim=dim)
    if backend == REFERENCE:
        return reference.softmax(logits, dim)
    before, after = logits.shape[:dim].numel(), logits.shape[dim + 1 :].numel()
    rows = logits.reshape(before, logits.shape[dim], *(() if after == 1 else (after,)))
    return apply(SoftmaxFunction, rows, backend).reshape(logits.shape)
