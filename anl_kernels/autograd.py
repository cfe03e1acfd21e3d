"""The autograd Functions: they save, call an operator, and forward. No formulas.

First gradients are kernels'; gradients of gradients differentiate the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import anl_kernels.batching  # noqa: F401, its rules for vmap
from anl_kernels import ops
from anl_kernels.backends import reference
from anl_kernels.backends.selection import load_backend
from anl_kernels.checks import on_plain_cpu
from anl_kernels.interface import RowOutputs
from anl_kernels.ops import RowSpec
from anl_kernels.terms import Terms
from anl_kernels.tracing import forward_mode

_kernels = torch.ops.anl_kernels


class RowLossFunction(torch.autograd.Function):
    """``apply(logits, target, row_scale, term_weights, *RowSpec)``: the loss over rows of logits.

    Args:
        logits: (K,), (N, K) or (N, K, d1, ...), floating, any strides.
        target: int32 or int64 of the logits' shape less K.
        row_scale: 0-d, or of the target's shape, in the accumulator dtype; receives a gradient.
        term_weights: (T,) in the place of the factors among the spec's params, or None; receives
            a gradient if the spec asks for ``aux``.
        *spec: the fields of :class:`anl_kernels.ops.RowSpec`, in order.

    Returns:
        The loss, differentiable, then the fields of
        :class:`anl_kernels.interface.RowOutputs`, which are not.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
        """Call the operator."""
        spec = RowSpec(*args[3:])
        if spec.write_grad and spec.inplace:
            return _kernels.row_loss_(logits, *args)
        return _kernels.row_loss(logits, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what backward needs."""
        _keep(ctx, inputs[:4], RowSpec(*inputs[4:]), output)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """Hand over the one-pass gradient, or make it from what was saved of rows."""
        spec = ctx.spec
        if grad_loss is None:
            return (None,) * (4 + len(spec))
        differentiable = torch.is_grad_enabled()
        only_logits = not any(ctx.needs_input_grad[1:])
        if ctx.grad is not None and only_logits and not differentiable and not forward_mode():
            # Held here any longer, the gradient would be cloned by whoever accumulates it.
            grad, ctx.grad = ctx.grad, None
            scale_ = ops.scale_ if on_plain_cpu(grad) else _kernels.scale_
            scale_(grad, grad_loss, spec.backend)
            return grad, *(None,) * (3 + len(spec))
        if spec.write_grad and spec.inplace:
            raise RuntimeError(
                "inplace=True left the gradient where the logits were: it can be handed out once, "
                "and not differentiated; pass inplace=False for retain_graph or create_graph"
            )
        if forward_mode():
            inputs = [tensor for tensor in ctx.saved_tensors if tensor is not None]
            target = inputs.pop(1)
            by_logits, *by_factors = _formula_gradients(grad_loss, target, *inputs, spec=spec)
            by_weight = by_factors.pop() if len(by_factors) > 1 else None
            return by_logits, None, by_factors[0], by_weight, *(None,) * len(spec)
        # Here too on a second backward through the one-pass form.
        saved = (grad_loss, *ctx.saved_tensors, ctx.saved, ctx.row_losses, ctx.term_losses)
        compute = RowGradientFunction.forward
        if differentiable:  # the logits are to be read once more
            compute, spec = RowGradientFunction.apply, spec._replace(inplace=False)
        grads = compute(*saved, ctx.needs_input_grad[:4], *spec)
        return grads[0], None, *grads[1:], *(None,) * len(spec)


class DirectRowLossFunction(torch.autograd.Function):
    """:class:`RowLossFunction`, for ordinary tensors on a CPU, without the dispatcher.

    ``apply(logits, target, row_scale, term_weights, RowSpec, terms, list)`` returns the loss, and
    appends the :class:`anl_kernels.interface.RowOutputs` to the list. An operator that is
    implemented in Python, and every input and output of a Function, cost more than a small kernel:
    128 x 10 logits take a quarter of the time this way.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor,
        term_weights: Tensor | None,
        spec: RowSpec,
        terms: Terms,
        results: list[RowOutputs],
    ) -> Tensor:
        """Call the backend."""
        if spec.write_grad and spec.inplace:
            torch.autograd.graph.increment_version(logits)
        backend = load_backend(spec.backend)
        request = spec.request_of(terms)
        outputs = backend.row_loss(logits, target, row_scale, term_weights, request)
        results.append(outputs)
        _keep(ctx, (logits, target, row_scale, term_weights), spec, outputs)
        return outputs.loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        """As :meth:`RowLossFunction.backward`."""
        return *RowLossFunction.backward(ctx, grad_loss)[:4], None, None, None


def _keep(
    ctx: Any, inputs: tuple[Tensor | None, ...], spec: RowSpec, outputs: tuple[Tensor | None, ...]
) -> None:
    """Keep the logits for a recomputation, or, in the one-pass form, their gradient."""
    ctx.spec = spec
    _, ctx.row_losses, grad, ctx.saved, ctx.term_losses, *_ = outputs
    ctx.save_for_backward(*inputs)
    ctx.grad = None
    if spec.write_grad:
        logits = inputs[0]
        ctx.grad = logits.detach() if spec.inplace and logits is not None else grad
    # Else backward is handed zeros of each output's size, the gradient's among them.
    ctx.set_materialize_grads(False)


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
        saved: Tensor,
        row_losses: Tensor,
        term_losses: Tensor,
        needed: tuple[bool, ...],
        *args: Any,
    ) -> tuple[Tensor | None, ...]:
        """Gradients with respect to logits, row_scale and term_weights."""
        spec = RowSpec(*args)
        grad_logits = grad_scale = grad_weights = None
        upstream = grad_loss * row_scale
        if needed[0]:
            if spec.write_grad:  # the one-pass form kept nothing of rows
                again = spec._replace(write_grad=False, aux=False, probs=False)
                saved = _kernels.row_loss(logits, target, row_scale, term_weights, *again)[3]
            grad_logits = _row_grad(logits, target, upstream, saved, spec)
        if needed[2]:
            losses = grad_loss * row_losses.view(target.shape)
            grad_scale = losses.sum() if row_scale.dim() == 0 else losses
        if needed[3]:
            assert term_weights is not None
            by_row = upstream.expand(target.shape).reshape(-1, 1)
            grad_weights = (term_losses * by_row).sum(0)
        return grad_logits, grad_scale, grad_weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        """Keep the inputs."""
        ctx.save_for_backward(*inputs[:5])
        ctx.spec = RowSpec(*inputs[9:])

    @staticmethod
    def backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Differentiate the reference's gradient; ``torch.func`` so that transforms nest."""
        if ctx.spec.group:
            raise RuntimeError(
                "a loss whose classes are spread over ranks has no second derivatives in kernels; "
                "call it inside ak.use_backend('reference'), which has"
            )
        grad_loss, logits, target, row_scale, term_weights = ctx.saved_tensors

        def gradients(grad_loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            return _formula_gradients(grad_loss, target, *inputs, spec=ctx.spec)

        weights = () if term_weights is None else (term_weights,)
        first, vjp, *_ = torch.func.vjp(gradients, grad_loss, logits, row_scale, *weights)
        upstream = [
            torch.zeros_like(gradient) if up is None else up
            for gradient, up in zip(first, grad_grads, strict=False)
        ]
        by_loss, by_logits, by_scale, *by_weights = vjp(tuple(upstream))
        by_weight = by_weights[0] if by_weights else None
        return by_loss, by_logits, None, by_scale, by_weight, *(None,) * (4 + len(ctx.spec))


def _row_grad(
    logits: Tensor, target: Tensor, upstream: Tensor, saved: Tensor, spec: RowSpec
) -> Tensor:
    if spec.inplace:
        _kernels.row_grad_(logits, target, upstream, saved, *spec)
        return logits.detach()
    return _kernels.row_grad(logits, target, upstream, saved, *spec)


def _formula_gradients(
    grad_loss: Tensor, target: Tensor, *inputs: Tensor, spec: RowSpec
) -> tuple[Tensor, ...]:
    """The gradients by logits, row_scale and, if given, weights as a function of all of them."""

    def loss(logits: Tensor, row_scale: Tensor, *weights: Tensor) -> Tensor:
        return _reference_loss(logits, target, row_scale, *weights, spec=spec)

    return torch.func.vjp(loss, *inputs)[1](grad_loss)


def _reference_loss(
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    weights: Tensor | None = None,
    *,
    spec: RowSpec,
) -> Tensor:
    rows = reference.row_loss(logits, target, weights, spec.terms, spec.ignore_index)
    scaled = rows.row_losses * row_scale
    return scaled.sum() if spec.reduce else scaled


class SoftmaxFunction(torch.autograd.Function):
    """``apply(logits, backend)``: softmax over the class dimension (1, or 0 for a single row)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, backend: str) -> Tensor:
        """Call the operator."""
        return _kernels.softmax(logits, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the probabilities."""
        ctx.save_for_backward(output)
        ctx.backend = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """``p (g - sum p g)``, by a kernel unless it is to be differentiated itself."""
        (probs,) = ctx.saved_tensors
        if torch.is_grad_enabled() or forward_mode():
            dim = 0 if probs.dim() == 1 else 1
            return torch._softmax_backward_data(grad, probs, dim, probs.dtype), None
        softmax_backward = ops.softmax_backward if on_plain_cpu(grad) else _kernels.softmax_backward
        return softmax_backward(grad, probs, ctx.backend), None


class DirectSoftmaxFunction(torch.autograd.Function):
    """:class:`SoftmaxFunction` for ordinary tensors on a CPU, as :class:`DirectRowLossFunction`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, backend: str) -> Tensor:
        """Call the backend."""
        probs = load_backend(backend).softmax(logits)
        SoftmaxFunction.setup_context(ctx, (logits, backend), probs)
        return probs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """As :meth:`SoftmaxFunction.backward`."""
        return SoftmaxFunction.backward(ctx, grad)


def _setup_operator(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    # Scaling the one-pass gradient in place would mutate a saved tensor, which a trace of the
    # operator may not do: its backward recomputes.
    RowLossFunction.setup_context(ctx, inputs, output)
    ctx.grad = None


torch.library.register_autograd(
    "anl_kernels::row_loss", RowLossFunction.backward, setup_context=_setup_operator
)
torch.library.register_autograd(
    "anl_kernels::softmax", SoftmaxFunction.backward, setup_context=SoftmaxFunction.setup_context
)
