"""The autograd Function of a mixture: it saves, walks over chunks of rows, and forwards."""

from __future__ import annotations

from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from anl_kernels.backends.choice import load_backend
from anl_kernels.interface import Backend, accumulator_dtype
from anl_kernels.mixed.mixture import Mixture, mixture_losses
from anl_kernels.mixed.sweep import sweep

_MIB = 1 << 20
_CHUNK_BYTES = {"cpu": 8 * _MIB, "cuda": 64 * _MIB}
"""Of a chunk of logits: it stays in a CPU's cache, where several sweeps read it, and bounds what a
distribution's temporary tensors take."""
SAVED = object()
"""Stands for a tensor that autograd has saved."""


class MixtureSpec(NamedTuple):
    """How a mixture is computed."""

    backend: str
    reduce: bool
    one_pass: bool
    """The one-pass form: the gradient is made with the loss."""
    inplace: bool
    """And takes the place of the logits."""


class MixtureFunction(torch.autograd.Function):
    """``apply(logits, Mixture, MixtureSpec)``: the scaled loss of (N, K) or (N, K, M) logits.

    The gradient is that of the logits alone.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, mixture: Mixture, spec: MixtureSpec) -> Tensor:
        """Compute the losses and, in the one-pass form, the gradient."""
        ctx.spec, ctx.grad = spec, None
        leaves, ctx.tree = tree_flatten(mixture)
        ctx.others = [SAVED if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(logits, *(leaf for leaf in leaves if isinstance(leaf, Tensor)))
        backend = load_backend(spec.backend)
        if spec.one_pass and spec.inplace:
            torch.autograd.graph.increment_version(logits)
            ctx.grad = logits.detach()
        elif spec.one_pass:
            ctx.grad = backend.empty_like_rows(logits)
        losses = walk(backend, logits.detach(), mixture, ctx.grad)
        return losses.sum() if spec.reduce else losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None]:
        """Hand over the one-pass gradient, or make it."""
        spec = ctx.spec
        backend = load_backend(spec.backend)
        differentiable = torch.is_grad_enabled()
        if ctx.grad is not None and not differentiable:
            # Held here any longer, the gradient would be cloned by whoever accumulates it.
            grad, ctx.grad = ctx.grad, None
            backend.scale_(grad, upstream)
            return grad, None, None
        if spec.one_pass and spec.inplace:
            raise RuntimeError(
                "inplace=True left the gradient where the logits were: it can be handed out once, "
                "and not differentiated; pass inplace=False for retain_graph or create_graph"
            )
        logits, *tensors = ctx.saved_tensors
        given = iter(tensors)
        leaves = [next(given) if leaf is SAVED else leaf for leaf in ctx.others]
        mixture = tree_unflatten(leaves, ctx.tree)
        if differentiable:
            return _differentiable(logits, mixture, upstream, spec), None, None
        grad = backend.empty_like_rows(logits)
        walk(backend, logits.detach(), scaled(mixture, upstream), grad)
        return grad, None, None


def _differentiable(
    logits: Tensor, mixture: Mixture, upstream: Tensor, spec: MixtureSpec
) -> Tensor:
    """The gradient as a function of the logits and the upstream gradient."""
    z = logits.view_as(logits)  # the rest is the caller's graph
    losses = mixture_losses(z, mixture)
    loss = losses.sum() if spec.reduce else losses
    (grad,) = torch.autograd.grad(loss, z, upstream, create_graph=True)
    return grad


def scaled(mixture: Mixture, upstream: Tensor) -> Mixture:
    """The mixture of losses times ``upstream``, 0-d or row-shaped."""
    scale = mixture.distribution_scale
    return mixture._replace(
        scales=tuple(factor * upstream for factor in mixture.scales),
        distribution_scale=None if scale is None else scale * upstream,
    )


def walk(backend: Backend, logits: Tensor, mixture: Mixture, grad: Tensor | None) -> Tensor:
    """The scaled losses of all rows, a chunk at a time, and their gradient to ``grad``."""
    losses = logits.new_empty(mixture.base.shape, dtype=accumulator_dtype(logits.dtype))
    for rows in _chunks(logits):
        part = (rows[0], slice(None), *rows[1:])
        chunk = mixture.select(itemgetter(rows), itemgetter(part))
        losses[rows] = sweep(backend, logits[part], chunk, None if grad is None else grad[part])
    return losses


def _chunks(logits: Tensor) -> list[tuple[slice, ...]]:
    """The rows of (N, K) or (N, K, M) logits in chunks, as indices of row-shaped tensors."""
    N, K, *positions = logits.shape
    wide = max(4, logits.element_size())
    most = max(1, _CHUNK_BYTES.get(logits.device.type, _CHUNK_BYTES["cpu"]) // (wide * max(1, K)))
    if not positions:
        return [(rows,) for rows in _slices(N, most)]
    M = positions[0]
    together = max(1, most // max(1, M))
    return [(n, m) for n in _slices(N, together) for m in _slices(M, most)]


def _slices(count: int, most: int) -> list[slice]:
    parts = max(1, -(-count // most))
    each = -(-count // parts)
    return [slice(first, min(first + each, count)) for first in range(0, count, max(1, each))]
