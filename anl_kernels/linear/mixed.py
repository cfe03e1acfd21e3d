"""Head and loss of more than one label a row: a mixture over chunks of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from anl_kernels import ops
from anl_kernels.backends.selection import REFERENCE, choose_backend
from anl_kernels.execution import Aux
from anl_kernels.interface import accumulator_dtype
from anl_kernels.linear.arguments import LocalHead
from anl_kernels.linear.autograd import logits_of
from anl_kernels.linear.chunks import Chunk
from anl_kernels.linear.execution import LinearCall
from anl_kernels.linear.execution import run as run_labels
from anl_kernels.linear.ops import HeadSpec, Specs, Walk
from anl_kernels.mixed.arguments import MixedFactors
from anl_kernels.mixed.autograd import SAVED, scaled, walk
from anl_kernels.mixed.execution import loss_of_distribution, weighed_aux
from anl_kernels.mixed.mixture import Mixture, mixture_losses
from anl_kernels.ops import RowSpec
from anl_kernels.terms import CE, as_terms
from anl_kernels.tracing import transforming, watched

_CE = as_terms(CE())
_NUM_TENSORS = 3


def run(
    head: LocalHead, options: HeadSpec, factors: MixedFactors, reduce: bool, aux: tuple[str, ...]
) -> tuple[Tensor, Aux]:
    """The loss, and what was asked for beside it."""
    backend = _backend(head, options, factors.mixture)
    if _can_be_swept(head, factors.mixture, backend):
        loss = _swept(head, options, factors.mixture, reduce, backend)
    else:
        loss = _apart(head, options, factors.mixture, reduce)
    return loss, _aux(head, options, factors, aux) if aux else Aux()


def _backend(head: LocalHead, options: HeadSpec, mixture: Mixture) -> str:
    rows = head.hidden.new_empty((0, options.num_classes), dtype=options.dtype)
    terms = mixture.terms if mixture.labels else _CE
    return choose_backend(rows.device.type, terms, rows, 1)


def _can_be_swept(head: LocalHead, mixture: Mixture, backend: str) -> bool:
    if head.shards is not None or transforming() or watched(head.hidden):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in mixture.factors):
        return False
    return backend != REFERENCE


def _swept(
    head: LocalHead, options: HeadSpec, mixture: Mixture, reduce: bool, backend: str
) -> Tensor:
    grad_mode = torch.is_grad_enabled()
    options = options._replace(
        needs_hidden=head.hidden.requires_grad and grad_mode,
        needs_weight=head.weight.requires_grad and grad_mode,
        needs_bias=head.bias is not None and head.bias.requires_grad and grad_mode,
    )
    needs_grad = options.needs_hidden or options.needs_weight or options.needs_bias
    one_pass = reduce and options.dtype in (torch.float32, torch.bfloat16)
    spec = RowSpec(
        "",
        [],
        None,
        mixture.ignore_index,
        backend,
        reduce=reduce,
        write_grad=needs_grad and one_pass,
    )
    hidden = head.hidden.reshape(-1, head.hidden.shape[-1])
    loss = LinearMixtureFunction.apply(
        hidden, head.weight, head.bias, _in_a_line(mixture), Specs(spec, options)
    )
    return loss if reduce else loss.view(head.target.shape)


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
        losses, ctx.grads = _walk(hidden, weight, bias, mixture, specs, specs.rows.write_grad)
        return losses.sum() if specs.rows.reduce else losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Hand over the gradients, or make them."""
        specs, needed = ctx.specs, ctx.needs_input_grad[:_NUM_TENSORS]
        hidden, weight, bias, *tensors = ctx.saved_tensors
        given = iter(tensors)
        leaves = [next(given) if leaf is SAVED else leaf for leaf in ctx.leaves]
        mixture = tree_unflatten(leaves, ctx.tree)
        if torch.is_grad_enabled():
            inputs = (hidden, weight, bias)
            return *_differentiable(inputs, needed, mixture, upstream, specs), None, None
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            grads = _walk(hidden, weight, bias, scaled(mixture, upstream), specs, True)[1]
        else:
            for grad in grads:
                if grad.numel():
                    ops.scale_(grad, upstream, specs.rows.backend)
        return *(g if need else None for g, need in zip(grads, needed, strict=True)), None, None


def _walk(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mixture: Mixture,
    specs: Specs,
    gradients: bool,
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    rows = Walk(hidden, weight, bias, mixture.base, specs, gradients)
    losses = hidden.new_zeros(mixture.base.shape, dtype=accumulator_dtype(specs.head.dtype))

    def take(chunk: Chunk, z: Tensor) -> None:
        part = mixture.select(chunk.of, chunk.of)
        chunk.put(losses, walk(rows.kernels, z, part, z if gradients else None))

    rows.over_chunks(take)
    return losses, rows.gradients() if gradients else None


def _differentiable(
    inputs: tuple[Any, ...],
    needed: tuple[bool, ...],
    mixture: Mixture,
    upstream: Tensor,
    specs: Specs,
) -> tuple[Tensor | None, ...]:
    """The gradients as functions of the inputs: those of the computation that is not fused."""
    pairs = list(zip(inputs, needed, strict=True))
    # One input may be a function of another: the gradients of these views are of each alone.
    given = [tensor.view_as(tensor) if need else tensor for tensor, need in pairs]
    asked = [tensor for tensor, need in zip(given, needed, strict=True) if need]
    hidden, weight, bias = given
    losses = mixture_losses(_logits(hidden, weight, bias, mixture, specs.head), mixture)
    loss = losses.sum() if specs.rows.reduce else losses
    grads = iter(torch.autograd.grad(loss, asked, upstream, create_graph=True, allow_unused=True))
    return tuple(next(grads) if need else None for need in needed)


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, mixture: Mixture, options: HeadSpec
) -> Tensor:
    ignored = (mixture.base == mixture.ignore_index).unsqueeze(-1)
    return logits_of(hidden.masked_fill(ignored, 0), weight, bias, options)


def _call(
    head: LocalHead, options: HeadSpec, mixture: Mixture, place: int, reduce: bool
) -> LinearCall:
    """The loss of one of the labels."""
    return LinearCall(
        head=head._replace(target=mixture.labels[place]),
        options=options,
        row_scale=mixture.scales[place],
        terms=mixture.terms,
        ignore_index=mixture.ignore_index,
        reduce=reduce,
        aux=(),
    )


def _apart(head: LocalHead, options: HeadSpec, mixture: Mixture, reduce: bool) -> Tensor:
    """A loss for each label, and one of all logits for the distribution, added."""
    calls = [_call(head, options, mixture, i, reduce) for i in range(len(mixture.labels))]
    parts = [run_labels(call)[0] for call in calls]
    if mixture.distribution is not None:
        line = _in_a_line(mixture)
        hidden = head.hidden.reshape(-1, head.hidden.shape[-1])
        logits = _logits(hidden, head.weight, head.bias, line, options)
        loss = loss_of_distribution(logits, line, reduce)
        parts.append(loss if reduce else loss.view(head.target.shape))
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


@torch.no_grad()
def _aux(head: LocalHead, options: HeadSpec, factors: MixedFactors, names: tuple[str, ...]) -> Aux:
    """Auxiliary outputs, in passes of their own."""
    mixture = factors.mixture._replace(terms=factors.terms)
    if not mixture.labels:
        raise ValueError(
            "return_aux needs class indices here; of class probabilities compute the logits and "
            "call ak.robust_loss"
        )
    made = []
    for place in range(len(mixture.labels)):
        call = _call(head, options, mixture, place, reduce=False)
        made.append(run_labels(LinearCall(**(vars(call) | {"aux": names})))[1])
    return weighed_aux(made, factors.shares, names)
