"""The autograd Functions of rows: they save, call an operator, and forward. No formulas.

First gradients are kernels'; gradients of gradients differentiate the reference. Plain eager calls
of compiled backends have a Function in C++ (csrc/autograd.h), which serves the first backward and
leaves any other to :func:`further_gradient`. ``torch.func`` and the compiler refuse such Functions,
Triton's kernels have no C++, and what has a gradient beside the logits is rare: those are Python's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anl_kernels.backends import reference
from anl_kernels.interface import NUM_SAVED, RowRequest
from anl_kernels.rows.operators import Where
from anl_kernels.tracing import PLAIN, forward_mode, transforming


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)``, without its way through ``inspect.signature``.

    That takes 40 us where a Function has ``setup_context`` (torch 2.13), more than the rest of a
    small call; only ``torch.func``, the compiler and subclasses of tensors need it.
    """
    if transforming() or type(args[0]) not in PLAIN:
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


class RowLossFunction(torch.autograd.Function):
    """``apply(logits, target, row_scale, term_weights, Where, RowRequest)``.

    Args:
        logits: (K,), (N, K) or (N, K, d1, ...), floating, any strides.
        target: int32 or int64 of the logits' shape less K.
        row_scale: 0-d, or of the target's shape, in the accumulator dtype; receives a gradient if
            row_losses are wanted.
        term_weights: (T,) in the place of the terms' factors, or None; receives a gradient if
            term_losses are wanted.

    Returns:
        The outputs that the request names: the loss, differentiable, then others, which are not.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor,
        term_weights: Tensor | None,
        where: Where,
        request: RowRequest,
    ) -> tuple[Tensor, ...]:
        """Call the operator."""
        return tuple(where.row_loss(logits, target, row_scale, term_weights, request))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the logits for a recomputation, or, in the one-pass mode, their gradient."""
        *tensors, ctx.where, request = inputs
        ctx.request = request
        ctx.save_for_backward(*tensors)
        made = dict(zip(request.names, output, strict=True))
        ctx.numbers = [made.get(name) for name in ("saved", "row_losses", "term_losses")]
        ctx.grad = tensors[0].detach() if request.overwrites else made.get("grad")
        ctx.mark_non_differentiable(*output[1:])
        # Else backward is handed zeros of each output's size, the gradient's among them.
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """Hand over the one-pass gradient, or make it from what was saved of rows."""
        where, request = ctx.where, ctx.request
        if grad_loss is None:
            return (None,) * 6
        only_logits = not any(ctx.needs_input_grad[1:])
        usual = not torch.is_grad_enabled() and not forward_mode()
        if ctx.grad is not None and only_logits and usual:
            # Held here any longer, the gradient would be cloned by whoever accumulates it.
            grad, ctx.grad = ctx.grad, None
            where.call("scale_", grad, grad_loss)
            return grad, None, None, None, None, None
        _check_not_overwritten(request)
        saved = *ctx.saved_tensors, *ctx.numbers
        by_logits, *by_factors = _gradients(
            grad_loss, saved, ctx.needs_input_grad[:4], where, request
        )
        return by_logits, None, *by_factors, None, None


def further_gradient(
    backend: str,
    request: tuple[Any, ...],
    grad_loss: Tensor,
    inputs: Sequence[Tensor | None],
    saved: Tensor | None,
) -> Tensor | None:
    """The logits' gradient in a backward pass that csrc/autograd.h does not serve."""
    asked = RowRequest(*request)
    _check_not_overwritten(asked)
    kept = *inputs, saved, None, None
    return _gradients(grad_loss, kept, (True, False, False, False), Where(backend), asked)[0]


def _check_not_overwritten(request: RowRequest) -> None:
    if request.overwrites:
        raise RuntimeError(
            "inplace=True left the gradient where the logits were: it can be handed out once, "
            "and not differentiated; pass inplace=False for retain_graph or create_graph"
        )


def _gradients(
    grad_loss: Tensor,
    saved: tuple[Any, ...],
    needed: tuple[bool, ...],
    where: Where,
    request: RowRequest,
) -> tuple[Tensor | None, ...]:
    """The gradients by logits, row_scale and term_weights of what was saved.

    Here too on a second backward through the one-pass mode.
    """
    if forward_mode():
        logits, target, row_scale, weights, *_ = saved
        inputs = [tensor for tensor in (logits, row_scale, weights) if tensor is not None]
        by_logits, by_scale, *by_weights = _formula_gradients(
            grad_loss, target, *inputs, request=request, where=where
        )
        return by_logits, by_scale, by_weights[0] if by_weights else None
    compute: Any = RowGradientFunction.forward
    if torch.is_grad_enabled():  # differentiable: the logits are to be read once more
        compute, request = RowGradientFunction.apply, request._replace(inplace=False)
    return compute(grad_loss, *saved, needed, where, request)


class RowGradientFunction(torch.autograd.Function):
    """The gradients of :class:`RowLossFunction` as a function that is differentiable itself."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad_loss: Tensor,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor,
        term_weights: Tensor | None,
        saved: Tensor | None,
        row_losses: Tensor | None,
        term_losses: Tensor | None,
        needed: tuple[bool, ...],
        where: Where,
        request: RowRequest,
    ) -> tuple[Tensor | None, ...]:
        """Gradients with respect to logits, row_scale and term_weights."""
        rows = logits, target
        grad_logits = grad_scale = grad_weights = None
        upstream = grad_loss * row_scale
        if needed[0]:
            if saved is None:  # the one-pass mode kept nothing of rows
                asked = request.asking("saved", inplace=False)
                (saved,) = where.row_loss(*rows, row_scale, term_weights, asked)
            if request.inplace:
                where.call("row_grad_into", logits, *rows, upstream, saved, *request)
                grad_logits = logits.detach()
            else:
                grad_logits = where.call("row_grad", *rows, upstream, saved, *request)
        if needed[2]:
            assert row_losses is not None
            losses = grad_loss * row_losses.view(target.shape)
            grad_scale = losses.sum() if row_scale.dim() == 0 else losses
        if needed[3]:
            assert term_losses is not None
            by_row = upstream.expand(target.shape).reshape(-1, 1)
            grad_weights = (term_losses * by_row).sum(0)
        return grad_logits, grad_scale, grad_weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        """Keep the inputs."""
        ctx.save_for_backward(*inputs[:5])
        ctx.where, ctx.request = inputs[-2:]

    @staticmethod
    def backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Differentiate the reference's gradient; ``torch.func`` so that transforms nest."""
        if ctx.where.group:
            raise RuntimeError(
                "a loss whose classes are spread over ranks has no second derivatives in kernels; "
                "call it inside ak.use_backend('reference'), which has"
            )
        grad_loss, logits, target, row_scale, term_weights = ctx.saved_tensors

        def gradients(grad_loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            options = {"request": ctx.request, "where": ctx.where}
            return _formula_gradients(grad_loss, target, *inputs, **options)

        weights = () if term_weights is None else (term_weights,)
        first, vjp, *_ = torch.func.vjp(gradients, grad_loss, logits, row_scale, *weights)
        upstream = [
            torch.zeros_like(gradient) if up is None else up
            for gradient, up in zip(first, grad_grads, strict=False)
        ]
        by_loss, by_logits, by_scale, *by_weights = vjp(tuple(upstream))
        by_weight = by_weights[0] if by_weights else None
        return by_loss, by_logits, None, by_scale, by_weight, *(None,) * 6


def _formula_gradients(
    grad_loss: Tensor, target: Tensor, *inputs: Tensor, request: RowRequest, where: Where
) -> tuple[Tensor, ...]:
    """The gradients by logits, row_scale and, if given, weights as a function of all of them."""

    def loss(logits: Tensor, row_scale: Tensor, weights: Tensor | None = None) -> Tensor:
        return formula_loss(logits, target, row_scale, weights, request, where)

    return torch.func.vjp(loss, *inputs)[1](grad_loss)


def formula_loss(
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    weights: Tensor | None,
    request: RowRequest,
    where: Where,
) -> Tensor:
    """What :class:`RowLossFunction` computes, by the terms' definitions."""
    terms, ignore_index = request.terms, request.ignore_index
    rows = reference.row_loss(logits, target, weights, terms, ignore_index, where.shards)
    scaled = rows.row_losses * row_scale
    return scaled.sum() if request.reduce else scaled


class BatchBalancedFunction(torch.autograd.Function):
    """``apply(logits, target, row_scale, term_weights, Where, RowRequest, factors_of)``.

    As :class:`RowLossFunction` in the recompute mode, with a gradient for the logits alone: that of
    each term times a factor which ``factors_of`` makes of all rows' denominators, (N, T). What was
    saved of rows is linear in the terms, so the logits are read as often as without the factors.

    Args:
        term_weights: (T,).

    Returns:
        The outputs that the request names, the loss without the factors, then the weights with
        them, (T,).
    """

    @staticmethod
    def forward(
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor,
        term_weights: Tensor,
        where: Where,
        request: RowRequest,
        factors_of: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, ...]:
        """Call the operator, and weigh what it saved."""
        results = where.row_loss(logits, target, row_scale, term_weights, request)
        made = request.named(results)
        factors = factors_of(made.denominators)
        of_terms = made.term_slopes.view(-1, len(factors), 2)
        made.saved[:, 2:4] = (of_terms * factors.view(1, -1, 1)).sum(1)
        made.saved[:, NUM_SAVED:] *= factors
        return *results, term_weights * factors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the gradient is made of."""
        logits, target, row_scale, _, ctx.where, ctx.request, _ = inputs
        ctx.save_for_backward(logits, target, row_scale, output[-1])
        ctx.saved = ctx.request.named(output[:-1]).saved
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """By the logits."""
        if grad_loss is None:
            return (None,) * 7
        needed = (ctx.needs_input_grad[0], False, False, False)
        compute: Any = RowGradientFunction.forward
        request = ctx.request
        if torch.is_grad_enabled():
            compute, request = RowGradientFunction.apply, request._replace(inplace=False)
        saved = (*ctx.saved_tensors, ctx.saved, None, None)
        grads = compute(grad_loss, *saved, needed, ctx.where, request)
        return grads[0], *(None,) * 6


class SoftmaxFunction(torch.autograd.Function):
    """``apply(logits, backend)``: softmax over the class dimension (1, or 0 for a single row)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, backend: str) -> Tensor:
        """Call the operator."""
        return Where(backend).call("softmax", logits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the probabilities."""
        ctx.save_for_backward(output)
        ctx.where = Where(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """``p (g - sum p g)``, by a kernel unless it is to be differentiated itself."""
        (probs,) = ctx.saved_tensors
        if torch.is_grad_enabled() or forward_mode():
            dim = 0 if probs.dim() == 1 else 1
            return torch._softmax_backward_data(grad, probs, dim, probs.dtype), None
        return ctx.where.call("softmax_backward", grad, probs), None
