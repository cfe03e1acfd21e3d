"""The losses as functions: shapes, reductions and weights as PyTorch has them; no kernels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from anl_kernels import checks
from anl_kernels.autograd import RowLossFunction, SoftmaxFunction
from anl_kernels.backends import reference
from anl_kernels.backends.interface import accumulator_dtype
from anl_kernels.backends.selection import REFERENCE, choose_backend
from anl_kernels.ops import RowSpec
from anl_kernels.options import (
    LossOptions,
    Reduction,
    aux_outputs,
    check_reduction,
    class_scale_at,
)
from anl_kernels.terms import CE, NCE, NNCE, Term, Terms, as_terms


@dataclass(frozen=True)
class Aux:
    """What a loss knew on its way, without gradient; None where it was not asked for.

    Shapes: N-d like the target, with T terms first in ``term_losses`` and like the logits in
    ``probs``. float32, or float64 for float64 logits; ``argmax`` int64; ``probs`` in the logits'
    dtype. Rows whose label is ignored have ``term_losses`` and ``p_y`` 0.
    """

    term_losses: Tensor | None = None
    """Each term's loss, without its weight."""
    lse: Tensor | None = None
    """Log-sum-exp of the logits."""
    p_y: Tensor | None = None
    """Probability of the label."""
    argmax: Tensor | None = None
    """The class of the largest logit, the first of equals: the prediction."""
    probs: Tensor | None = None
    """The softmax."""


def robust_loss(
    logits: Tensor,
    target: Tensor,
    terms: Term | Terms,
    *,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    class_scale: float | Literal["auto"] = 1.0,
    inplace: bool = False,
    return_aux: bool | Collection[str] = False,
) -> Tensor | tuple[Tensor, Aux]:
    """A weighted sum of terms, with the conventions of ``torch.nn.functional.cross_entropy``.

    Args:
        logits: (K,), (N, K) or (N, K, d1, ...); float64, float32, float16 or bfloat16; any
            strides. A logit of -inf is a class that is not there.
        target: class indices, int64 or int32, of the logits' shape less K.
        terms: a term or a weighted sum of terms, such as ``5.0 * NCE() + 5.0 * NNCE()``.
        weight: (K,) factors on the loss of rows with each label. Not with
            ``CE(label_smoothing > 0)``.
        sample_weight: factors on the loss of each row, of the target's shape. May require grad.
        ignore_index: label of rows that do not count; need not be a valid class.
        reduction: "mean" divides the sum by the summed class weights of the rows that count (their
            number without ``weight``); ``sample_weight`` does not enter the divisor. With no row
            that counts the loss is 0 and so is its gradient. "none" gives one loss for each row.
        class_scale: factor on the normalised terms (NCE, NNCE, NFL, NNFL, NGCE), whose gradients
            shrink as 1/K; "auto" for ``K log K / (10 log 10)``.
        inplace: let the gradient overwrite the logits, to save their size in memory. Whoever
            saved them for backward raises then; a second backward does too. The reference
            backend does not use the permission.
        return_aux: also return :class:`Aux` with term losses, lse, p_y and argmax, or only what
            a collection of its field names asks for ("probs" only so).

    Returns:
        The loss, float32 (float64 for float64 logits): 0-d, or of the target's shape for "none";
        with ``return_aux`` a pair of it and an :class:`Aux`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit, or a parameter is out of range at this K.
        IndexError: a label is outside [0, K) and not ``ignore_index``. On a GPU only inside
            :func:`check_labels`; otherwise the row's loss is NaN there.
        RuntimeError: the backend asked for with :func:`use_backend` cannot run.
    """
    checks.check_logits(logits)
    checks.check_target(target, logits)
    check_reduction(reduction)
    num_classes = logits.shape[checks.class_dim(logits)]
    checks.check_labels_in_range(target, num_classes, ignore_index)
    scaled_terms = as_terms(terms).scaled(class_scale_at(class_scale, num_classes))
    for term in scaled_terms.terms:
        term.check_num_classes(num_classes)
    if weight is not None:
        checks.check_class_weight(weight, logits)
        _check_weighted_terms(scaled_terms)
    if sample_weight is not None:
        checks.check_sample_weight(sample_weight, target)

    call = _Call(
        logits=logits,
        target=target,
        row_scale=_row_scale(logits, target, weight, sample_weight, ignore_index, reduction),
        terms=scaled_terms,
        ignore_index=ignore_index,
        reduce=reduction != "none",
        inplace=inplace,
        aux=aux_outputs(return_aux),
    )
    backend = choose_backend(logits.device.type, scaled_terms)
    loss, aux = _reference(call) if backend == REFERENCE else _kernels(call, backend)
    return (loss, aux) if return_aux else loss


def nce(logits: Tensor, target: Tensor, **options: Unpack[LossOptions]) -> Tensor:
    """Normalised cross entropy: :func:`robust_loss` of :class:`NCE`."""
    return robust_loss(logits, target, NCE(), **options)  # type: ignore[return-value]


def nnce(
    logits: Tensor,
    target: Tensor,
    min_prob: float = 1e-7,
    prob_max: float = 1.0,
    **options: Unpack[LossOptions],
) -> Tensor:
    """Normalised negative cross entropy: :func:`robust_loss` of :class:`NNCE`."""
    terms = NNCE(min_prob, prob_max)
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
    terms = alpha * NCE() + beta * NNCE(min_prob)
    return robust_loss(logits, target, terms, **options)  # type: ignore[return-value]


def softmax(logits: Tensor, dim: int = -1) -> Tensor:
    """Softmax over ``dim``, as ``torch.softmax``: one read of the logits, one write.

    Args:
        logits: float64, float32, float16 or bfloat16, any shape but 0-d, any strides.
        dim: the dimension of the classes.

    Returns:
        Probabilities of the logits' shape and dtype; arithmetic is float32 (float64 for float64).
        Differentiable twice.

    Raises:
        TypeError: logits are not floating.
        IndexError: dim is out of range.
        RuntimeError: the backend asked for with :func:`use_backend` cannot run.
    """
    checks.check_floating_logits(logits)
    if not -logits.dim() <= dim < logits.dim():
        raise IndexError(f"dim must be in [-{logits.dim()}, {logits.dim() - 1}], got {dim}")
    backend = choose_backend(logits.device.type)
    if backend == REFERENCE:
        acc = accumulator_dtype(logits.dtype)
        return torch.softmax(logits, dim, dtype=acc).to(logits.dtype)
    dim %= logits.dim()
    before, after = logits.shape[:dim].numel(), logits.shape[dim + 1 :].numel()
    rows = logits.reshape(before, logits.shape[dim], *(() if after == 1 else (after,)))
    return SoftmaxFunction.apply(rows, backend).reshape(logits.shape)


@dataclass(frozen=True)
class _Call:
    """A checked call of a loss."""

    logits: Tensor
    target: Tensor
    row_scale: Tensor
    terms: Terms
    ignore_index: int
    reduce: bool
    inplace: bool
    aux: tuple[str, ...]


def _row_scale(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
) -> Tensor:
    """The factor of each row, or one (0-d) for all: weights over the divisor of the mean."""
    acc = accumulator_dtype(logits.dtype)
    scale = None
    if weight is not None:
        # The label may be ignore_index or, on a GPU, wrong; neither may become an address.
        scale = weight.to(acc)[target.clamp(0, weight.numel() - 1)]
    if reduction == "mean":
        counted = target != ignore_index
        divisor = counted.sum(dtype=acc) if scale is None else (scale * counted).sum()
        inverse = torch.where(divisor == 0, 0.0, 1 / divisor)
        scale = inverse if scale is None else scale * inverse
    if sample_weight is not None:
        factors = sample_weight.to(acc)
        scale = factors if scale is None else scale * factors
    return logits.new_ones((), dtype=acc) if scale is None else scale


def _check_weighted_terms(terms: Terms) -> None:
    for term in terms.terms:
        if isinstance(term, CE) and term.label_smoothing:
            raise ValueError(
                f"weight cannot be combined with CE(label_smoothing={term.label_smoothing}): "
                f"torch.nn.CrossEntropyLoss weighs the smoothed classes one by one, this library "
                f"weighs rows; set label_smoothing=0 or pass sample_weight=weight[target]"
            )


def _reference(call: _Call) -> tuple[Tensor, Aux]:
    weights = call.terms.tensor_weights(like=call.row_scale)
    out = reference.row_loss(call.logits, call.target, weights, call.terms, call.ignore_index)
    scaled = out.row_losses * call.row_scale
    loss = scaled.sum() if call.reduce else scaled
    row = out.row
    ignored = call.target == call.ignore_index
    made = {
        "term_losses": lambda: out.term_losses.detach(),
        "lse": lambda: row.lse.detach(),
        "p_y": lambda: row.p_y.detach().masked_fill(ignored, 0),
        "argmax": lambda: call.logits.argmax(checks.class_dim(call.logits)),
        "probs": lambda: softmax(call.logits.detach(), checks.class_dim(call.logits)),
    }
    return loss, Aux(**{name: made[name]() for name in call.aux})


def _kernels(call: _Call, backend: str) -> tuple[Tensor, Aux]:
    logits, shape = call.logits, call.target.shape
    weights = call.terms.tensor_weights(like=call.row_scale)
    learned = weights is not None and weights.requires_grad
    needs_grad = torch.is_grad_enabled() and logits.requires_grad
    if call.inplace and needs_grad:
        checks.check_inplace(logits)
    spec = RowSpec(
        names=call.terms.names,
        params=list(call.terms.params),
        ignore_index=call.ignore_index,
        backend=backend,
        reduce=call.reduce,
        write_grad=needs_grad and _one_pass(call, learned),
        inplace=call.inplace and needs_grad,
        aux=learned or not {"probs"}.issuperset(call.aux),
        probs="probs" in call.aux,
    )
    loss, _, _, _, term_losses, lse, p_y, argmax, probs = RowLossFunction.apply(
        logits, call.target, call.row_scale, weights, *spec
    )
    made = {
        "term_losses": lambda: term_losses.t().reshape(-1, *shape),
        "lse": lambda: lse.view(shape),
        "p_y": lambda: p_y.view(shape),
        "argmax": lambda: argmax.view(shape),
        "probs": lambda: probs,
    }
    return loss, Aux(**{name: made[name]() for name in call.aux})


def _one_pass(call: _Call, learned_weights: bool) -> bool:
    """Whether the forward kernel shall write the gradient too: 1 read + 1 write of the logits.

    Otherwise the backward reads them again, which costs a third more but takes any upstream
    gradient before it rounds. float16 needs that: NCE's gradient, about 1/K, is below float16's
    smallest number until a GradScaler has multiplied it. Compiled code and functorch transforms
    need it: the compiler would copy a gradient that is scaled in place, and functorch always asks
    for a differentiable backward, which recomputes.
    """
    return (
        call.reduce
        and call.logits.dtype != torch.float16
        and not learned_weights
        and not call.row_scale.requires_grad
        and not checks.transforming()
    )
