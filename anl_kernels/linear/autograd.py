"""The autograd Function of head and loss: it saves, calls operators, and forwards."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anl_kernels import ops
from anl_kernels.autograd import RowLossFunction
from anl_kernels.backends import reference
from anl_kernels.backends.selection import REFERENCE
from anl_kernels.distributed.collectives import CopyToShards
from anl_kernels.labels import is_ignored
from anl_kernels.linear.ops import HeadSpec, Specs
from anl_kernels.tracing import forward_mode

_kernels = torch.ops.anl_kernels
_NUM_TENSORS = 6


class LinearLossFunction(torch.autograd.Function):
    """``apply(hidden, weight, bias, target, row_scale, term_weights, *RowSpec, *HeadSpec)``.

    Args:
        hidden: (N, D), floating.
        weight: (K, D).
        bias: (K,) or None.
        target: (N,) int32 or int64.
        row_scale: 0-d or (N,), in the accumulator dtype; receives a gradient.
        term_weights: (T,) in the place of the factors among the spec's params, or None; receives a
            gradient if the spec asks for ``aux``.
        *specs: the fields of :class:`anl_kernels.ops.RowSpec`, then those of
            :class:`anl_kernels.linear.ops.HeadSpec`.

    Returns:
        The loss, differentiable, then the results of rows
        (:data:`anl_kernels.linear.ops.ROW_OUTPUTS`) and the gradients, which are not.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        """Call the operator."""
        return _kernels.linear_loss(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the inputs and, in the one-pass form, the gradients."""
        ctx.args = inputs[_NUM_TENSORS:]
        ctx.save_for_backward(*inputs[:_NUM_TENSORS])
        _, ctx.row_losses, ctx.saved, ctx.term_losses, *_ = output
        ctx.grads = output[-3:] if Specs.of(ctx.args).rows.write_grad else None
        ctx.mark_non_differentiable(*output[1:])
        # Else backward is handed zeros of each output's size, the weight's gradient among them.
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """Hand over the one-pass gradients, or make them from what was saved of rows."""
        nothing = (None,) * len(ctx.args)
        needed = ctx.needs_input_grad[:_NUM_TENSORS]
        if grad_loss is None:
            return *(None,) * _NUM_TENSORS, *nothing
        specs = Specs.of(ctx.args)
        saved = ctx.saved_tensors  # once: a checkpoint unpacks them once only
        if torch.is_grad_enabled() or forward_mode():
            return *_differentiable(grad_loss, saved, needed, specs), *nothing
        if specs.rows.write_grad:
            # Held here any longer, a gradient would be cloned by whoever accumulates it.
            grads, ctx.grads = ctx.grads, None
            if grads is None:  # a second backward
                grads = _kernels.linear_loss(*saved, *ctx.args)[-3:]
            grads = tuple(_scaled(grad, grad_loss, specs.rows.backend) for grad in grads)
        elif not any(needed[:3]):  # but those of factors
            grads = (None,) * 3
        else:
            *tensors, row_scale, _ = saved
            upstream = grad_loss * row_scale
            grads = _kernels.linear_grad(*tensors, upstream, ctx.saved, *ctx.args)
        first = (grad if need else None for grad, need in zip(grads, needed, strict=False))
        scale, weights = _of_factors(ctx, grad_loss, saved[4], needed)
        return *first, None, scale, weights, *nothing


def _scaled(grad: Tensor, factor: Tensor, backend: str) -> Tensor:
    if torch.compiler.is_compiling():  # a graph would copy what is changed in place
        return grad * factor
    if grad.numel():
        ops.scale_(grad, factor, backend)
    return grad


def _of_factors(
    ctx: Any, grad_loss: Tensor, row_scale: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of ``row_scale`` and ``term_weights``, in which the loss is linear."""
    of_scale = of_weights = None
    if needed[4]:
        losses = grad_loss * ctx.row_losses
        of_scale = losses.sum() if row_scale.dim() == 0 else losses
    if needed[5]:
        by_row = (grad_loss * row_scale).expand(ctx.row_losses.shape).unsqueeze(-1)
        of_weights = (ctx.term_losses * by_row).sum(0)
    return of_scale, of_weights


def _differentiable(
    grad_loss: Tensor, tensors: tuple[Any, ...], needed: tuple[bool, ...], specs: Specs
) -> tuple[Tensor | None, ...]:
    """The gradients as functions of the inputs: those of the computation that is not fused."""
    # One input may be a function of another, as hidden is of a tied weight: the gradients of these
    # views are of each alone, and the rest is the caller's graph.
    pairs = list(zip(tensors, needed, strict=True))
    with torch.enable_grad():
        given = [tensor.view_as(tensor) if need else tensor for tensor, need in pairs]
    asked = [tensor for tensor, need in zip(given, needed, strict=True) if need]
    graph = torch.is_grad_enabled()  # it is off where forward mode alone asks
    with torch.enable_grad():
        loss = unfused_loss(*given, specs=specs)
    made = torch.autograd.grad(loss, asked, grad_loss, create_graph=graph, allow_unused=True)
    grads = iter(made)
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
    spec = specs.rows._replace(write_grad=False)
    hidden = hidden.masked_fill(is_ignored(target, spec.ignore_index).unsqueeze(-1), 0)
    if spec.shards is not None:
        hidden = CopyToShards.apply(hidden, spec.shards.group)
    logits = logits_of(hidden, weight, bias, specs.head)
    if spec.backend != REFERENCE and not forward_mode():
        loss, *_ = RowLossFunction.apply(logits, target, row_scale, term_weights, *spec)
        return loss
    made = reference.row_loss(
        logits, target, term_weights, spec.terms, spec.ignore_index, spec.shards
    )
    scaled = made.row_losses * row_scale
    return scaled.sum() if spec.reduce else scaled


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, spec: HeadSpec) -> Tensor:
    """The head's output as a whole, (N, K)."""
    bias = None if bias is None else bias[: spec.num_classes].to(spec.dtype)
    weight = weight[: spec.num_classes].to(spec.dtype)
    logits = F.linear(hidden.to(spec.dtype), weight, bias)
    return spec.softcap * torch.tanh(logits / spec.softcap) if spec.softcap else logits
