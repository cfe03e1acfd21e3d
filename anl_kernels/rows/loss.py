"""The loss of checked rows: who computes it, in which mode, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anl_kernels.backends import reference
from anl_kernels.backends.choice import REFERENCE, choose_backend
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.distributed.local_parts import AmongDTensors
from anl_kernels.distributed.row_shards import RowShards
from anl_kernels.interface import BITS, OF_TERMS, RowOutputs, RowRequest, outputs_of
from anl_kernels.rows.autograd import RowLossFunction, apply
from anl_kernels.rows.operators import Where
from anl_kernels.terms import Terms
from anl_kernels.terms.encoding import encode
from anl_kernels.terms.probes import PROBES, found_by, with_probes
from anl_kernels.tracing import transforming


@dataclass(frozen=True)
class Aux:
    """What a loss knew on its way, without gradient; None where it was not asked for.

    Shapes: N-d like the target, with T terms first in ``term_losses`` and ``denominators``, and
    like the logits in ``probs``. float32, or float64 for float64 logits; ``argmax`` int64;
    ``probs`` in the logits' dtype. Rows whose label is ignored have 0, but for ``lse``, ``argmax``
    and ``probs``, which are theirs.
    """

    term_losses: Tensor | None = None
    """Each term's loss, without its weight."""
    lse: Tensor | None = None
    """Log-sum-exp of the logits."""
    p_y: Tensor | None = None
    """Probability of the label."""
    argmax: Tensor | None = None
    """The prediction, which is the class of the largest logit, the first of equals."""
    probs: Tensor | None = None
    """The softmax."""
    denominators: Tensor | None = None
    """The size of the sum over classes that each term is divided by; 1 of one that is not."""
    entropy: Tensor | None = None
    """Of the softmax, in nats: ``-sum_k p_k log p_k``."""
    log_p_y: Tensor | None = None
    """Log-probability of the label, with its digits where ``p_y`` is close to 0 or to 1."""


_NO_AUX = Aux()


def row_loss(
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    terms: Terms,
    *,
    ignore_index: int,
    reduce: bool,
    inplace: bool = False,
    aux: tuple[str, ...] = (),
    shards: ClassShards | None = None,
    term_weights: Tensor | None = None,
) -> tuple[Tensor, Aux]:
    """The loss of checked rows times ``row_scale``, and what was asked for beside it.

    Chooses who computes it, and the mode: one pass, or recompute. ``term_weights``, (T,), stand in
    the place of the terms' own.
    """
    if asks_for_probes(aux):
        options: Any = {"ignore_index": ignore_index, "reduce": reduce, "shards": shards}
        compute = partial(row_loss, logits, target, row_scale, inplace=inplace, **options)
        return probed(compute, terms, aux, term_weights=term_weights)
    backend = choose_backend(logits, terms)
    weights = terms.tensor_weights(like=row_scale) if term_weights is None else term_weights
    if backend == REFERENCE:
        made = reference.row_loss(logits, target, weights, terms, ignore_index, shards)
        scaled = made.row_losses * row_scale
        loss = scaled.sum() if reduce else scaled
        return loss, aux_of_formulas(aux, logits, target, made, ignore_index, shards)
    grad_mode = torch.is_grad_enabled()
    # What vmap wraps does not say that it requires grad.
    wrapped = grad_mode and torch._C._are_functorch_transforms_active()
    needs_grad = wrapped or (grad_mode and logits.requires_grad)
    learned = weights is not None and (wrapped or (grad_mode and weights.requires_grad))
    by_factor = wrapped or learned or row_scale.requires_grad
    one_pass = reduce and shards is None and not by_factor and not transforming()
    outputs = outputs_for(logits.dtype, needs_grad, one_pass)
    if by_factor:
        outputs |= BITS["row_losses"]
    if learned:
        outputs |= BITS["term_losses"]
    outputs |= outputs_of(*aux)
    inplace = inplace and grad_mode and logits.requires_grad
    request = RowRequest(*encode(terms), ignore_index, outputs, reduce, inplace)
    where = Where.of(backend, shards)
    tensors = logits, target, row_scale, weights
    if not (needs_grad or by_factor):
        results = where.row_loss(*tensors, request)
    elif by_factor or not where.has_function(logits):
        results = apply(RowLossFunction, *tensors, where, request)
    else:
        results = where.recorded_row_loss(*tensors, request)
        request = request.without_grad()
    return results[0], aux_of(aux, target.shape, request.named(results)) if aux else _NO_AUX


def asks_for_probes(aux: tuple[str, ...]) -> bool:
    """Whether any of these outputs is the loss of a term that is to be added."""
    return any(name in PROBES for name in aux)


def probed(
    compute: Callable[..., tuple[Tensor, Aux]],
    terms: Terms,
    aux: tuple[str, ...],
    *,
    term_weights: Tensor | None,
) -> tuple[Tensor, Aux]:
    """``compute(terms, term_weights=, aux=)``, with the probes that ``aux`` asks for.

    They follow the terms, with weight 0.
    """
    names = tuple(name for name in PROBES if name in aux)
    if torch.compiler.is_compiling():
        both = with_probes(terms, *names)
    else:
        both = terms.derived(with_probes, *names)
    if term_weights is not None:
        term_weights = torch.cat([term_weights, term_weights.new_zeros(len(names))])
    others = tuple(name for name in aux if name not in PROBES)
    asked = tuple(dict.fromkeys((*others, "term_losses")))
    loss, made = compute(both, term_weights=term_weights, aux=asked)
    assert made.term_losses is not None
    values = {name: getattr(made, name) for name in others}
    for name in set(others).intersection(OF_TERMS):
        values[name] = values[name][: len(terms)]
    for name, losses in zip(names, made.term_losses[len(terms) :], strict=True):
        values[name] = found_by(name, losses)
    return loss, Aux(**values)


def over_ranks(loss: Tensor, aux: Aux, rows: RowShards | None) -> tuple[Tensor, Aux]:
    """Results out of DTensors: the loss of all ranks' rows; what is of rows, as their DTensors."""
    if rows is None:
        return AmongDTensors.apply(loss), aux
    made = {
        name: None if value is None else rows.spread(value, 1 if name in OF_TERMS else 0)
        for name, value in vars(aux).items()
        if name != "probs"
    }
    loss = rows.spread(loss) if loss.dim() else AmongDTensors.apply(rows.total(loss))
    return loss, Aux(**made, probs=aux.probs)


def aux_of_formulas(
    names: tuple[str, ...],
    logits: Tensor,
    target: Tensor,
    made: reference.ReferenceOutputs,
    ignore_index: int,
    shards: ClassShards | None,
) -> Aux:
    """What was asked for of the reference's results."""
    given = logits, target, made, ignore_index, shards
    return Aux(**{name: reference.auxiliary(name, *given) for name in names})


def aux_of(names: tuple[str, ...], shape: torch.Size, made: RowOutputs) -> Aux:
    """What was asked for of the results of rows, in the target's shape."""

    def shaped(name: str) -> Tensor:
        values = getattr(made, name)
        if name == "probs":
            return values
        if name in OF_TERMS:
            return values.t().reshape(values.shape[1], *shape)
        return values.view(shape)

    return Aux(**{name: shaped(name) for name in names})


def outputs_for(dtype: torch.dtype, recorded: bool, one_pass: bool) -> int:
    """The loss, and, where a gradient will be asked for, what backward needs.

    One pass, if it may be: the forward kernel writes the gradient too, 1 read + 1 write of the
    logits. Otherwise the backward reads them again, half as much traffic more, but it takes any
    upstream gradient before it rounds. float16 needs that: NCE's gradient, about 1/K, is below
    float16's smallest number until a GradScaler has multiplied it. float64 is there for checks,
    such as gradcheck's that a second backward, which recomputes, gives the same bits. Compiled code
    and functorch transforms need it: the compiler would copy a gradient that is scaled in place,
    and functorch always asks for a differentiable backward, which recomputes. Classes on several
    ranks are read again for the gradient in either mode, since the ranks' sums come first.
    """
    if not recorded:
        return _LOSS
    one_pass = one_pass and dtype in (torch.float32, torch.bfloat16)
    return _LOSS_AND_GRAD if one_pass else _LOSS_AND_SAVED


_LOSS, _LOSS_AND_GRAD = outputs_of("loss"), outputs_of("loss", "grad")
_LOSS_AND_SAVED = outputs_of("loss", "saved")
