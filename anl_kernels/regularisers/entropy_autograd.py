"""The autograd Function of the entropy regulariser: it saves, calls operators, and forwards."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anl_kernels.checks import on_plain_cpu
from anl_kernels.layout import one_stride
from anl_kernels.regularisers import entropy_ops
from anl_kernels.regularisers.entropy_formula import definition
from anl_kernels.regularisers.entropy_ops import EntropySpec
from anl_kernels.tracing import forward_mode

_kernels = torch.ops.anl_kernels


class EntropyFunction(torch.autograd.Function):
    """``apply(logits, counted, owned, EntropySpec)``: (an alias of the logits, the regulariser).

    A loss that takes the alias hands its gradient to this backward, which adds its own to it. If
    that gradient is ``owned``, fresh memory that nobody else will read, it is added in place: one
    gradient of the logits' size lives, not two.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, counted: Tensor | None, owned: bool, spec: EntropySpec
    ) -> tuple[Tensor, Tensor]:
        """Call the operator."""
        value, slopes, lse_parts = _operators(logits).entropy(logits, counted, *spec)
        ctx.save_for_backward(logits, counted, slopes, lse_parts)
        ctx.owned, ctx.spec = owned, spec
        # Else the gradient of an alias that is not used would be zeros of the logits' size.
        ctx.set_materialize_grads(False)
        return logits.view_as(logits), value

    @staticmethod
    def backward(
        ctx: Any, grad_alias: Tensor | None, upstream: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        """The sum of both gradients."""
        return _with_gradient(ctx, grad_alias, upstream, ctx.owned), None, None, None


def _with_gradient(
    ctx: Any, grad: Tensor | None, upstream: Tensor | None, owned: bool
) -> Tensor | None:
    if upstream is None:
        return grad
    saved = ctx.saved_tensors  # once: a checkpoint unpacks them once only
    if torch.is_grad_enabled() or forward_mode():
        made = _differentiable(upstream, saved[0], saved[1], ctx.spec)
    elif grad is None or not owned or not one_stride(grad):
        made = _operators(saved[0]).entropy_grad(upstream, *saved, *ctx.spec)
    else:
        _operators(grad).entropy_grad_(grad, upstream, *saved, *ctx.spec)
        return grad
    return made if grad is None else grad + made


def _operators(tensor: Tensor) -> Any:
    return entropy_ops if on_plain_cpu(tensor) else _kernels


def _differentiable(
    upstream: Tensor, logits: Tensor, counted: Tensor | None, spec: EntropySpec
) -> Tensor:
    """The gradient as a function of the logits and the upstream gradient."""
    graph = torch.is_grad_enabled()  # it is off where forward mode alone asks
    with torch.enable_grad():
        z = logits.view_as(logits)  # the rest is the caller's graph
        value = definition(z, counted, spec.min_prob, spec.process_group)
    (grad,) = torch.autograd.grad(value, z, upstream, create_graph=graph)
    return grad


def _setup_operator(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, counted, *spec = inputs
    _, slopes, lse_parts = output
    ctx.save_for_backward(logits, counted, slopes, lse_parts)
    ctx.spec = EntropySpec(*spec)
    ctx.mark_non_differentiable(slopes, lse_parts)
    ctx.set_materialize_grads(False)


def _operator_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    grad = _with_gradient(ctx, None, upstream, owned=False)
    return grad, *(None,) * (1 + len(EntropySpec._fields))


torch.library.register_autograd(
    "anl_kernels::entropy", _operator_backward, setup_context=_setup_operator
)
