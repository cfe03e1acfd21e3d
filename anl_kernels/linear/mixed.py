"""Head and loss of more than one label a row: a mixture over chunks of rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from anl_kernels.backends.choice import REFERENCE, choose_backend
from anl_kernels.interface import RowRequest, accumulator_dtype
from anl_kernels.linear.autograd import gradients_by_formula, logits_of
from anl_kernels.linear.chunks import Chunk
from anl_kernels.linear.loss import linear_loss
from anl_kernels.linear.operators import GRADIENTS, Projection, Specs, Walk
from anl_kernels.linear.prepare import Operands
from anl_kernels.mixed.autograd import SAVED, scaled, walk
from anl_kernels.mixed.loss import loss_of_distribution, weighed_aux
from anl_kernels.mixed.mixture import Mixture, mixture_losses
from anl_kernels.mixed.prepare import MixedFactors
from anl_kernels.rows.loss import Aux
from anl_kernels.rows.operators import Where
from anl_kernels.terms import CE, as_terms
from anl_kernels.tracing import transforming, watched

_CE = as_terms(CE())
_NUM_TENSORS = 3


def run(
    operands: Operands,
    projection: Projection,
    factors: MixedFactors,
    reduce: bool,
    aux: tuple[str, ...],
) -> tuple[Tensor, Aux]:
    """The loss, and what was asked for beside it."""
    backend = _backend(operands, projection, factors.mixture)
    if _can_be_swept(operands, factors.mixture, backend):
        loss = _swept(operands, projection, factors.mixture, reduce, backend)
    else:
        loss = _apart(operands, projection, factors.mixture, reduce)
    return loss, _aux(operands, projection, factors, aux) if aux else Aux()


def _backend(operands: Operands, projection: Projection, mixture: Mixture) -> str:
    rows = operands.hidden.new_empty((0, projection.num_classes), dtype=projection.dtype)
    terms = mixture.terms if mixture.labels else _CE
    return choose_backend(rows, terms)


def _can_be_swept(operands: Operands, mixture: Mixture, backend: str) -> bool:
    if operands.shards is not None or transforming() or watched(operands.hidden):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in mixture.factors):
        return False
    return backend != REFERENCE


def _swept(
    operands: Operands, projection: Projection, mixture: Mixture, reduce: bool, backend: str
) -> Tensor:
    projection = projection.needing(operands.hidden, operands.weight, operands.bias)
    one_pass = reduce and projection.dtype in (torch.float32, torch.bfloat16)
    wanted = ("grad",) if projection.gradients and one_pass else ()
    request = RowRequest.of(mixture.terms, mixture.ignore_index, *wanted, reduce=reduce)
    specs = Specs(request, Where(backend), projection)
    hidden = operands.hidden.reshape(-1, operands.hidden.shape[-1])
    loss = LinearMixtureFunction.apply(
        hidden, operands.weight, operands.bias, _in_a_line(mixture), specs
    )
    return loss if reduce else loss.view(operands.target.shape)


def _in_a_line(mixture: Mixture) -> Mixture:
    """With rows (N,), and shares (N, K), of those (...) and (..., K)."""
    return mixture.select(lambda t: t.reshape(-1), lambda t: t.reshape(-1, t.shape[-1]))


class LinearMixtureFunction(torch.autograd.Function):
    """``apply(hidden, weight, bias, Mixture, Specs)``: (N, D), (K, D), (K,) or None."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mixture: Mixture,
        specs: Specs,
    ) -> Tensor:
        """The loss and, in the one-pass form, the gradients."""
        leaves, ctx.tree = tree_flatten(mixture)
        ctx.leaves = [SAVED if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        ctx.save_for_backward(hidden, weight, bias, *tensors)
        ctx.specs = specs
        one_pass = specs.request.wants("grad")
        losses, ctx.grads = _walk(hidden, weight, bias, mixture, specs, one_pass)
        return losses.sum() if specs.request.reduce else losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Hand over the gradients, or make them."""
        specs, needed = ctx.specs, ctx.needs_input_grad[:_NUM_TENSORS]
        hidden, weight, bias, *tensors = ctx.saved_tensors
        given = iter(tensors)
        leaves = [next(given) if leaf is SAVED else leaf for leaf in ctx.leaves]
        mixture = tree_unflatten(leaves, ctx.tree)
        if torch.is_grad_enabled():
            compute = partial(_unfused, mixture=mixture, specs=specs)
            made = gradients_by_formula(compute, (hidden, weight, bias), needed, upstream)
            return *made, None, None
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            grads = _walk(hidden, weight, bias, scaled(mixture, upstream), specs, True)[1]
        else:
            for grad in grads.values():
                specs.where.load().scale_(grad, upstream)
        return *map(grads.get, GRADIENTS), None, None


def _walk(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mixture: Mixture,
    specs: Specs,
    gradients: bool,
) -> tuple[Tensor, dict[str, Tensor] | None]:
    rows = Walk(hidden, weight, bias, mixture.base, specs, gradients)
    losses = hidden.new_zeros(mixture.base.shape, dtype=accumulator_dtype(specs.projection.dtype))

    def take(chunk: Chunk, z: Tensor) -> None:
        part = mixture.select(chunk.of, chunk.of)
        chunk.put(losses, walk(rows.kernels, z, part, z if gradients else None))

    rows.over_chunks(take)
    return losses, rows.gradients() if gradients else None


def _unfused(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, *, mixture: Mixture, specs: Specs
) -> Tensor:
    """The same loss with all logits at once: differentiable as often as they are."""
    losses = mixture_losses(_logits(hidden, weight, bias, mixture, specs.projection), mixture)
    return losses.sum() if specs.request.reduce else losses


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, mixture: Mixture, projection: Projection
) -> Tensor:
    ignored = (mixture.base == mixture.ignore_index).unsqueeze(-1)
    return logits_of(hidden.masked_fill(ignored, 0), weight, bias, projection)


def _loss_of_label(
    operands: Operands,
    projection: Projection,
    mixture: Mixture,
    place: int,
    reduce: bool,
    aux: tuple[str, ...] = (),
) -> tuple[Tensor, Aux]:
    """The loss of one of the labels."""
    return linear_loss(
        operands._replace(target=mixture.labels[place]),
        projection,
        mixture.scales[place],
        mixture.terms,
        ignore_index=mixture.ignore_index,
        reduce=reduce,
        aux=aux,
    )


def _apart(operands: Operands, projection: Projection, mixture: Mixture, reduce: bool) -> Tensor:
    """A loss for each label, and one of all logits for the distribution, added."""
    places = range(len(mixture.labels))
    parts = [_loss_of_label(operands, projection, mixture, place, reduce)[0] for place in places]
    if mixture.distribution is not None:
        line = _in_a_line(mixture)
        hidden = operands.hidden.reshape(-1, operands.hidden.shape[-1])
        logits = _logits(hidden, operands.weight, operands.bias, line, projection)
        loss = loss_of_distribution(logits, line, reduce)
        parts.append(loss if reduce else loss.view(operands.target.shape))
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


@torch.no_grad()
def _aux(
    operands: Operands, projection: Projection, factors: MixedFactors, names: tuple[str, ...]
) -> Aux:
    """Auxiliary outputs, in passes of their own."""
    mixture = factors.mixture._replace(terms=factors.terms)
    if not mixture.labels:
        raise ValueError(
            "return_aux needs class indices here; of class probabilities compute the logits and "
            "call ak.robust_loss"
        )
    places = range(len(mixture.labels))
    made = [
        _loss_of_label(operands, projection, mixture, place, False, names)[1] for place in places
    ]
    return weighed_aux(made, factors.shares, names)
