"""Log-probabilities of several classes of every row of a projection, over chunks of rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from anl_kernels.interface import accumulator_dtype
from anl_kernels.labels import is_ignored
from anl_kernels.linear.autograd import gradients_by_formula, logits_of
from anl_kernels.linear.chunks import Chunk
from anl_kernels.linear.flops import (
    FORMULAS,
    of_log_probs,
    of_log_probs_gradient,
    register_formulas,
)
from anl_kernels.linear.operators import (
    GRADIENTS,
    SPECS_SCHEMA,
    Specs,
    Walk,
    empty_gradients,
)
from anl_kernels.operators import fake, operator
from anl_kernels.rows.log_probs import grad_by_label, log_probs_by_label, log_probs_of
from anl_kernels.tracing import forward_mode

_kernels = torch.ops.anl_kernels
_TENSORS = "Tensor hidden, Tensor weight, Tensor? bias, Tensor classes, Tensor target"
_NUM_TENSORS = 5


def any_class(classes: Tensor, ignore_index: int) -> Tensor:
    """One of each row's classes, ``ignore_index`` only where all are: (N, M) to (N,)."""
    counted = (~is_ignored(classes, ignore_index)).to(torch.uint8)
    return classes.gather(-1, counted.argmax(-1, keepdim=True)).squeeze(-1)


@operator(f"linear_log_probs({_TENSORS}, {SPECS_SCHEMA}) -> Tensor[]")
def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    target: Tensor,
    *args: Any,
) -> list[Tensor]:
    """Of (N, M) ``classes``, of which ``target`` has one a row; then what backward needs."""
    specs = Specs.of(args)
    walk = Walk(hidden, weight, bias, target, specs, gradients=False)
    found = _empty(classes, target, specs)
    log_probs, label, saved = found
    log_probs.zero_()
    label.copy_(target)
    saved.zero_()
    ignore_index = specs.request.ignore_index
    one = log_probs.new_ones(())

    def take(chunk: Chunk, z: Tensor) -> None:
        def cross_entropy(y: Tensor) -> tuple[Tensor, Tensor]:
            made = walk.kernels.row_loss(z, y, one, None, specs.request)
            return made.row_losses, made.saved

        given = z, chunk.of(classes), ignore_index, specs.where.backend
        of_chunk = log_probs_by_label(*given, cross_entropy)
        for into, values in zip(found, of_chunk, strict=True):
            chunk.put(into, values.squeeze(-1) if into is label else values)

    walk.over_chunks(take)
    return found


@fake("linear_log_probs")
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    target: Tensor,
    *args: Any,
) -> list[Tensor]:
    return _empty(classes, target, Specs.of(args))


@operator(
    f"linear_log_probs_grad({_TENSORS}, Tensor grad, Tensor log_probs, Tensor label, "
    f"Tensor saved, {SPECS_SCHEMA}) -> Tensor[]"
)
def linear_log_probs_grad(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    target: Tensor,
    grad: Tensor,
    log_probs: Tensor,
    label: Tensor,
    saved: Tensor,
    *args: Any,
) -> list[Tensor]:
    """The gradients by the projection, of those by log-probabilities: (N, M), 0 where ignored."""
    specs = Specs.of(args)
    walk = Walk(hidden, weight, bias, target, specs, gradients=True)

    def take(chunk: Chunk, z: Tensor) -> None:
        upstream, y = walk.scale_of(grad, chunk), chunk.of(label)

        def grad_of_label(of_rows: Tensor) -> Tensor:
            walk.kernels.row_grad_into(z, z, y, of_rows, chunk.of(saved), specs.request)
            return z

        given = chunk.of(classes), y.unsqueeze(-1), chunk.of(log_probs), upstream
        law = specs.request.ignore_index, specs.where.backend
        grad_by_label(z, *given, *law, grad_of_label)

    walk.over_chunks(take)
    made = walk.gradients()
    return [made[name] for name in specs.projection.gradients]


@fake("linear_log_probs_grad")
def _(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, classes: Tensor, target: Tensor, *args: Any
) -> list[Tensor]:
    return empty_gradients(Specs.of(args[4:]).projection.gradients, hidden, weight, bias)


def _empty(classes: Tensor, target: Tensor, specs: Specs) -> list[Tensor]:
    dtype = accumulator_dtype(specs.projection.dtype)
    saved = specs.request.saved_shape(target.numel())
    return [
        classes.new_empty(classes.shape, dtype=dtype),
        torch.empty_like(target),
        classes.new_empty(saved, dtype=dtype),
    ]


FORMULAS[_kernels.linear_log_probs] = of_log_probs
FORMULAS[_kernels.linear_log_probs_grad] = of_log_probs_gradient


class LinearLogProbsFunction(torch.autograd.Function):
    """``apply(hidden, weight, bias, classes, target, *Specs.flat)``: the log-probabilities, first.

    Shapes: (N, D), (K, D), (K,) or None, (N, M), (N,).
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        """Call the operator."""
        if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack():
            register_formulas()
        return tuple(_kernels.linear_log_probs(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep the inputs, and numbers of rows."""
        ctx.specs = Specs.of(inputs[_NUM_TENSORS:])
        ctx.save_for_backward(*inputs[:_NUM_TENSORS], *output)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """The logits are computed once more."""
        specs, needed = ctx.specs, ctx.needs_input_grad[: len(GRADIENTS)]
        nothing = (None,) * (2 + len(specs.flat))
        *tensors, log_probs, label, saved = ctx.saved_tensors
        grad = grad.masked_fill(is_ignored(tensors[3], specs.request.ignore_index), 0)
        if torch.is_grad_enabled() or forward_mode():
            *operands, classes, target = tensors
            compute = partial(unfused_log_probs, classes=classes, target=target, specs=specs)
            return *gradients_by_formula(compute, operands, needed, grad), *nothing
        numbers = log_probs, label, saved
        made = _kernels.linear_log_probs_grad(*tensors, grad, *numbers, *specs.flat)
        grads = dict(zip(specs.projection.gradients, made, strict=True))
        return *map(grads.get, GRADIENTS), *nothing


def unfused_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    classes: Tensor,
    target: Tensor,
    *,
    specs: Specs,
) -> Tensor:
    """The same with all logits at once: differentiable as often as they are."""
    ignore_index = specs.request.ignore_index
    hidden = hidden.masked_fill(is_ignored(target, ignore_index).unsqueeze(-1), 0)
    logits = logits_of(hidden, weight, bias, specs.projection)
    return log_probs_of(logits, classes, True, ignore_index, None)
