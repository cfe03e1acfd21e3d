"""The entropy regulariser's definition, its operators and their gradient; math in docs/math.md."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from anl_kernels.backends.choice import CPU, load_backend, why_not
from anl_kernels.checks import class_dim
from anl_kernels.distributed.collectives import add_up_, group_named, sum_of_batches
from anl_kernels.interface import NUM_LSE_PARTS, ColumnKernels, accumulator_dtype
from anl_kernels.layout import empty_like_rows, one_stride
from anl_kernels.operators import fake, library, operator
from anl_kernels.tracing import forward_mode, plain_cpu, watched

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def definition(
    logits: Tensor, counted: Tensor | None, min_prob: float, group: ProcessGroup | None
) -> Tensor:
    """The regulariser as it is written, differentiable as often as one likes."""
    dim = class_dim(logits)
    z = logits.to(accumulator_dtype(logits.dtype))
    left_out = None if counted is None else ~counted.unsqueeze(dim)
    if left_out is not None:
        z = z.masked_fill(left_out, 0)
    p = z.softmax(dim).clamp(min_prob, 1 - min_prob)
    if left_out is not None:
        p = p.masked_fill(left_out, 0)
    sums = p.movedim(dim, -1).flatten(0, -2).sum(0) if p.dim() > 1 else p
    if group is not None:
        sums = sum_of_batches(sums, group)
    total = sums.sum()
    nothing = total == 0
    q = (sums / torch.where(nothing, 1, total)).clamp(min=min_prob)
    value = math.log(q.numel()) + (q * q.log()).sum()
    return torch.where(nothing, 0, value)


def of_column_sums(sums: Tensor, min_prob: float) -> tuple[Tensor, Tensor]:
    """(0-d, (K,)): the regulariser and its derivatives by the sums; 0 where all sums are 0.

    Near the uniform distribution its value is a small difference of numbers of the size of log K.
    Here it is a sum of what is not negative, and the derivatives of what is near 0. On a CPU one
    operator computes the same (csrc/cpu/entropy.h).
    """
    if plain_cpu(sums) and why_not(CPU) is None:
        return torch.ops.anl_kernels_cpu.entropy(sums, min_prob)
    num_classes = sums.numel()
    log_k = math.log(num_classes)
    total = sums.sum()
    nothing = total == 0
    total = total.masked_fill(nothing, 1)
    q = sums / total
    high = q.clamp(min=min_prob)
    d = high * num_classes - 1
    t = d.log1p()  # log K q
    added = (high - q).sum()  # by the clamp, to the sum of all q
    value = ((1 + d) * t - d).sum() / num_classes + added * (1 - log_k)
    clamped = q < min_prob
    t = t.masked_fill(clamped, 0)
    of_clamped = q.masked_fill(~clamped, 0).sum()
    slopes = (t - (t * q).sum()) + (1 - log_k) * (of_clamped - clamped.to(q.dtype))
    return value.masked_fill(nothing, 0), (slopes / total).masked_fill(nothing, 0)


class EntropySpec(NamedTuple):
    """The arguments of the operators that are not tensors, in the operators' order."""

    min_prob: float
    backend: str
    group: str
    """Name of the process group whose ranks share the batch; empty if all of it is here."""

    @property
    def process_group(self) -> ProcessGroup | None:
        """The group of that name."""
        if not self.group:
            return None
        return group_named(self.group)

    @property
    def kernels(self) -> ColumnKernels:
        """The backend."""
        return load_backend(self.backend)


_SPEC = "float min_prob, str backend, str group"


@operator(
    f"entropy(Tensor logits, Tensor? counted, {_SPEC}) -> "
    "(Tensor value, Tensor slopes, Tensor lse_parts)"
)
def entropy(logits: Tensor, counted: Tensor | None, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The regulariser, and what :func:`entropy_grad` needs beside the logits.

    ``counted`` is a bool for each row, of the logits' shape less K; None if all of them count.
    """
    spec = EntropySpec(*args)
    low, group = spec.min_prob, spec.process_group
    sums, lse_parts = spec.kernels.column_sums(logits, counted, low, 1 - low)
    if group is not None:
        sums = add_up_(sums, group)
    return *of_column_sums(sums, low), lse_parts


@fake("entropy")
def _(logits: Tensor, *args: Any) -> tuple[Tensor, ...]:
    dtype, dim = accumulator_dtype(logits.dtype), class_dim(logits)
    num_classes = logits.shape[dim]
    num_rows = logits.shape[:dim].numel() * logits.shape[dim + 1 :].numel()
    shapes = (), (num_classes,), (num_rows, NUM_LSE_PARTS)
    return tuple(logits.new_empty(shape, dtype=dtype) for shape in shapes)


@operator(
    "entropy_grad(Tensor upstream, Tensor logits, Tensor? counted, Tensor slopes, "
    f"Tensor lse_parts, {_SPEC}) -> Tensor"
)
def entropy_grad(upstream: Tensor, logits: Tensor, *args: Any) -> Tensor:
    """The gradient with respect to the logits, times a 0-d ``upstream``."""
    spec = EntropySpec(*args[3:])
    grad = spec.kernels.empty_like_rows(logits)
    _column_grad(grad, upstream, (logits, *args[:3]), spec, accumulate=False)
    return grad


@fake("entropy_grad")
def _(upstream: Tensor, logits: Tensor, *args: Any) -> Tensor:
    return empty_like_rows(logits)


def _column_grad(
    grad: Tensor, upstream: Tensor, saved: tuple[Any, ...], spec: EntropySpec, accumulate: bool
) -> None:
    logits, counted, slopes, lse_parts = saved
    group, low = spec.process_group, spec.min_prob
    if group is not None:
        # This rank's rows are in the regulariser of every rank: see sum_of_batches.
        upstream = add_up_(upstream.clone(), group)
    scale = upstream.to(slopes.dtype)
    spec.kernels.column_grad(
        grad, logits, counted, lse_parts, slopes, scale, low, 1 - low, accumulate
    )


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
        """Call the operator, or what it is made of where nobody sees the difference."""
        compute = entropy if plain_cpu(logits) else torch.ops.anl_kernels.entropy
        value, *saved = compute(logits, counted, *spec)
        _keep(ctx, (logits, counted, *saved), spec, owned)
        return logits.view_as(logits), value

    @staticmethod
    def backward(
        ctx: Any, grad_alias: Tensor | None, upstream: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        """The sum of both gradients."""
        return _gradient(ctx, grad_alias, upstream), None, None, None


def _keep(ctx: Any, saved: tuple[Any, ...], spec: EntropySpec, owned: bool) -> None:
    ctx.save_for_backward(*saved)
    ctx.spec, ctx.owned = spec, owned
    # Else the gradient of an alias that is not used would be zeros of the logits' size.
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor | None, upstream: Tensor | None) -> Tensor | None:
    """The regulariser's gradient, added to one that is there."""
    if upstream is None:
        return grad
    saved, spec = ctx.saved_tensors, ctx.spec  # once: a checkpoint unpacks them once only
    if torch.is_grad_enabled() or forward_mode():
        made = _differentiable(upstream, saved[0], saved[1], spec)
    elif grad is None or not ctx.owned or not one_stride(grad) or watched(grad):
        compute = entropy_grad if plain_cpu(saved[0]) else torch.ops.anl_kernels.entropy_grad
        made = compute(upstream, *saved, *spec)
    else:
        torch.autograd.graph.increment_version(grad)
        _column_grad(grad, upstream, saved, spec, accumulate=True)
        return grad
    return made if grad is None else grad + made


def _differentiable(
    upstream: Tensor, logits: Tensor, counted: Tensor | None, spec: EntropySpec
) -> Tensor:
    """The gradient as a function of the logits and the upstream gradient."""
    graph = torch.is_grad_enabled()  # it is off where forward mode alone asks
    with torch.enable_grad():
        z = logits.view_as(logits)  # the rest is the caller's graph
        value = definition(z, counted, spec.min_prob, spec.process_group)
    return torch.autograd.grad(value, z, upstream, create_graph=graph)[0]


def _setup_operator(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, counted, *spec = inputs
    ctx.mark_non_differentiable(*output[1:])
    _keep(ctx, (logits, counted, *output[1:]), EntropySpec(*spec), owned=False)


def _operator_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    return _gradient(ctx, None, upstream), *(None,) * (1 + len(EntropySpec._fields))


torch.library.register_autograd(
    "anl_kernels::entropy", _operator_backward, setup_context=_setup_operator, lib=library
)
