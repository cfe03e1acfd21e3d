"""The autograd Function of head and loss: it saves, calls operators, and forwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anl_kernels.backends.choice import REFERENCE
from anl_kernels.distributed.collectives import CopyToShards
from anl_kernels.labels import is_ignored
from anl_kernels.linear.operators import GRADIENTS, Projection, Specs
from anl_kernels.rows.autograd import RowLossFunction, formula_loss
from anl_kernels.rows.operators import Where
from anl_kernels.tracing import forward_mode

_kernels = torch.ops.anl_kernels
_NUM_TENSORS = 6


class LinearLossFunction(torch.autograd.Function):
    """``apply(hidden, weight, bias, target, row_scale, term_weights, *Specs.flat)``.

    Args:
        hidden: (N, D), floating.
        weight: (K, D).
        bias: (K,) or None.
        target: (N,) int32 or int64.
        row_scale: 0-d or (N,), in the accumulator dtype; receives a gradient if row_losses are
            wanted.
        term_weights: (T,) in the place of the terms' factors, or None; receives a gradient if
            term_losses are wanted.

    Returns:
        The loss, differentiable, then the numbers of rows and the gradients that the specs want,
        which are not.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        """Call the operator."""
        return tuple(_kernels.linear_loss(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the inputs and, in the one-pass mode, the gradients."""
        ctx.specs = Specs.of(inputs[_NUM_TENSORS:])
        ctx.save_for_backward(*inputs[:_NUM_TENSORS])
        _, ctx.rows, grads = ctx.specs.split(output)
        ctx.grads = grads if ctx.specs.request.wants("grad") else None
        ctx.mark_non_differentiable(*output[1:])
        # Else backward is handed zeros of each output's size, the weight's gradient among them.
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """Hand over the one-pass gradients, or make them from what was saved of rows."""
        specs, needed = ctx.specs, ctx.needs_input_grad[:_NUM_TENSORS]
        nothing = (None,) * len(specs.flat)
        if grad_loss is None:
            return *(None,) * _NUM_TENSORS, *nothing
        saved = ctx.saved_tensors  # once: a checkpoint unpacks them once only
        if torch.is_grad_enabled() or forward_mode():
            compute = partial(unfused_loss, specs=specs)
            return *gradients_by_formula(compute, saved, needed, grad_loss), *nothing
        grads: dict[str, Tensor] = {}
        if specs.request.wants("grad"):
            # Held here any longer, a gradient would be cloned by whoever accumulates it.
            grads, ctx.grads = ctx.grads, None
            if grads is None:  # a second backward
                grads = specs.split(_kernels.linear_loss(*saved, *specs.flat))[2]
            grads = {name: _scaled(grad, grad_loss, specs.where) for name, grad in grads.items()}
        elif any(needed[:3]):  # else those of factors alone
            *tensors, row_scale, _ = saved
            upstream = grad_loss * row_scale
            made = _kernels.linear_grad(*tensors, upstream, ctx.rows.saved, *specs.flat)
            grads = dict(zip(specs.projection.gradients, made, strict=True))
        scale, weights = _of_factors(ctx, grad_loss, saved[4], needed)
        return *map(grads.get, GRADIENTS), None, scale, weights, *nothing


def _scaled(grad: Tensor, factor: Tensor, where: Where) -> Tensor:
    if torch.compiler.is_compiling():  # a graph would copy what is changed in place
        return grad * factor
    where.load().scale_(grad, factor)
    return grad


def _of_factors(
    ctx: Any, grad_loss: Tensor, row_scale: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of ``row_scale`` and ``term_weights``, in which the loss is linear."""
    of_scale = of_weights = None
    if needed[4]:
        losses = grad_loss * ctx.rows.row_losses
        of_scale = losses.sum() if row_scale.dim() == 0 else losses
    if needed[5]:
        by_row = (grad_loss * row_scale).expand(ctx.rows.row_losses.shape).unsqueeze(-1)
        of_weights = (ctx.rows.term_losses * by_row).sum(0)
    return of_scale, of_weights


def gradients_by_formula(
    compute: Callable[..., Tensor],
    inputs: Sequence[Any],
    needed: tuple[bool, ...],
    upstream: Tensor,
) -> tuple[Tensor | None, ...]:
    """The gradients of ``compute(*inputs)``, as functions of the inputs; None where not needed."""
    # One input may be a function of another, as hidden is of a tied weight: the gradients of these
    # views are of each alone, and the rest is the caller's graph.
    pairs = list(zip(inputs, needed, strict=True))
    graph = torch.is_grad_enabled()  # it is off where forward mode alone asks
    with torch.enable_grad():
        given = [tensor.view_as(tensor) if need else tensor for tensor, need in pairs]
        made = compute(*given)
    asked = [tensor for tensor, need in zip(given, needed, strict=True) if need]
    grads = iter(torch.autograd.grad(made, asked, upstream, create_graph=graph, allow_unused=True))
    return tuple(next(grads) if need else None for need in needed)


def unfused_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_scale: Tensor,
    term_weights: Tensor | None,
    *,
    specs: Specs,
) -> Tensor:
    """What the Function computes, with all logits at once: differentiable as often as they are."""
    where, ignore_index = specs.where, specs.request.ignore_index
    hidden = hidden.masked_fill(is_ignored(target, ignore_index).unsqueeze(-1), 0)
    if where.shards is not None:
        hidden = CopyToShards.apply(hidden, where.shards.group)
    logits = logits_of(hidden, weight, bias, specs.projection)
    if where.backend == REFERENCE or forward_mode():
        return formula_loss(logits, target, row_scale, term_weights, specs.request, where)
    wanted = ("loss", "saved", "row_losses", "term_losses")
    request = specs.request.asking(*wanted)
    return RowLossFunction.apply(logits, target, row_scale, term_weights, where, request)[0]


def logits_of(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, projection: Projection
) -> Tensor:
    """All logits at once, (N, K)."""
    softcap, dtype, num_classes = projection.softcap, projection.dtype, projection.num_classes
    bias = None if bias is None else bias[:num_classes].to(dtype)
    logits = F.linear(hidden.to(dtype), weight[:num_classes].to(dtype), bias)
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    return logits if projection.temperature == 1 else logits / projection.temperature
