"""The reference backend: plain differentiable PyTorch, any dtype, any device.

It is what every kernel is tested against, what gradients of gradients go through, and what runs
where no kernel does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from anl_kernels.backends import columns
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.distributed.sharded_row import ShardedRow, argmax_of_shards, logsumexp_of_shards
from anl_kernels.interface import (
    AUX,
    NUM_SAVED,
    OF_TERMS,
    RowOutputs,
    RowRequest,
    accumulator_dtype,
    empty_outputs,
    scaled_loss,
)
from anl_kernels.labels import is_ignored
from anl_kernels.layout import empty_like_rows
from anl_kernels.terms import Term, Terms
from anl_kernels.terms.dense_row import row_of
from anl_kernels.terms.row import Row, may_ask

_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality


class ReferenceOutputs(NamedTuple):
    """Per-row results, in the target's shape (term losses: T first)."""

    row_losses: Tensor
    term_losses: Tensor
    row: Row
    terms: Terms

    def denominators(self, ignored: Tensor) -> Tensor:
        """Those of all terms, T first, without gradient; 0 of ignored rows."""
        made = [term.denominator(self.row).detach() for term in self.terms.terms]
        return torch.stack(made).masked_fill(ignored, 0)


def row_loss(
    logits: Tensor,
    target: Tensor,
    term_weights: Tensor | None,
    terms: Terms,
    ignore_index: int,
    shards: ClassShards | None = None,
) -> ReferenceOutputs:
    """The unscaled loss of every row: 0 where ignored, NaN where the label is out of range.

    Differentiable, twice and more, with respect to ``logits`` and ``term_weights``. With
    ``shards`` the logits are some of the classes, and the other ranks of the group call this too.
    """
    classes_last = logits.movedim(1, -1) if logits.dim() > 1 else logits
    z = classes_last.to(accumulator_dtype(logits.dtype))
    num_classes = z.shape[-1] if shards is None else shards.num_classes
    ignored = is_ignored(target, ignore_index)
    outside = ((target < 0) | (target >= num_classes)) & ~ignored
    # Whatever stands in an ignored row, its gradient is 0, not 0 * NaN.
    masked = not may_ask(z) or bool((ignored | outside).any())
    if masked:
        z = z.masked_fill(ignored.unsqueeze(-1), 0)
    if shards is None:
        row = row_of(z, target.long().clamp(0, num_classes - 1))
    else:
        row = ShardedRow(z, shards.labels_here(target, ignore_index), shards)
    losses = torch.stack([_rows_of(term, row, target) for term in terms.terms])
    if masked:
        losses = losses.masked_fill(ignored, 0) + torch.where(outside, torch.nan, 0.0)
    weights: Iterable[float | Tensor] = terms.factors if term_weights is None else term_weights
    weighted = torch.stack([w * loss for w, loss in zip(weights, losses, strict=True)])
    return ReferenceOutputs(weighted.sum(0), losses, row, terms)


def _rows_of(term: Term, row: Row, target: Tensor) -> Tensor:
    """The loss of every row by a term's definition, which a user may have got wrong."""
    rows, name = term.rows(row), f"{type(term).__name__}.rows"
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        got = f"{rows.dtype}" if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(
            f"{name} must return a floating tensor, the loss of every row, got {got}; compute it "
            f"of what the row has (l_y, p_y, rest, log_probs, ...)"
        )
    if rows.shape != target.shape:
        raise ValueError(
            f"{name} must return one loss for each row, of shape {tuple(target.shape)}, got "
            f"{tuple(rows.shape)}; leave sums and means over rows to reduction, and sum over "
            f"classes by row.total_others"
        )
    asks = term.has_gradient and row.logits.requires_grad and torch.is_grad_enabled()
    if asks and not rows.requires_grad:
        raise ValueError(
            f"{name} must be differentiable, got a tensor that does not require grad where the "
            f"logits do; leave out detach(), item() and numpy()"
        )
    # Of its own dtype, or under autocast, a term must not choose that of the loss.
    return rows.to(row.logits.dtype)


def softmax(logits: Tensor, dim: int) -> Tensor:
    """Softmax over ``dim`` with the accumulator's arithmetic, in the logits' dtype."""
    return torch.softmax(logits, dim, dtype=accumulator_dtype(logits.dtype)).to(logits.dtype)


def auxiliary(
    name: str,
    logits: Tensor,
    target: Tensor,
    made: ReferenceOutputs,
    ignore_index: int,
    shards: ClassShards | None = None,
) -> Tensor:
    """A field of :class:`anl_kernels.Aux`, of ignored rows too, without gradient."""
    if name == "term_losses":
        return made.term_losses.detach()
    if name == "denominators":
        return made.denominators(is_ignored(target, ignore_index))
    if name == "p_y":
        return made.row.p_y.detach().masked_fill(is_ignored(target, ignore_index), 0)
    logits, dim = logits.detach(), 1 if logits.dim() > 1 else 0
    if name == "argmax":
        return logits.argmax(dim) if shards is None else argmax_of_shards(logits, dim, shards)
    z = logits.to(accumulator_dtype(logits.dtype))
    lse = z.logsumexp(dim) if shards is None else logsumexp_of_shards(z, dim, shards)
    return lse if name == "lse" else (z - lse.unsqueeze(dim)).exp().to(logits.dtype)


class ReferenceKernels:
    """The reference as a ``Backend``, for callers that walk over chunks of rows.

    Gradients are autograd's, within the call. It saves the weights of the terms, in
    every row.
    """

    def __init__(self, shards: ClassShards | None = None) -> None:
        self._shards = shards
        self.column_sums = columns.column_sums
        self.column_grad = columns.column_grad

    def knows(self, functor: str) -> bool:
        """See ``Backend.knows``: terms have formulas, not functors."""
        return True

    def empty_like_rows(self, logits: Tensor) -> Tensor:
        """See ``Backend.empty_like_rows``."""
        return empty_like_rows(logits)

    def scale_(self, tensor: Tensor, factor: Tensor) -> None:
        """See ``Backend.scale_``; never free."""
        tensor.mul_(factor)

    def row_loss(
        self,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor,
        term_weights: Tensor | None,
        request: RowRequest,
    ) -> RowOutputs:
        """See ``Backend.row_loss``."""
        outputs = empty_outputs(logits, target, request)
        z, made = self._run(logits, target, term_weights, request)
        row_losses = made.row_losses.detach().reshape(-1)
        for name in filter(request.wants, (*AUX, "denominators")):
            value = auxiliary(name, logits, target, made, request.ignore_index, self._shards)
            columns = value.flatten(1).t() if name in OF_TERMS else value.reshape(-1)
            getattr(outputs, name).copy_(columns)
        if request.wants("probs"):
            probs = auxiliary("probs", logits, target, made, request.ignore_index, self._shards)
            outputs.probs.copy_(probs)
        if request.wants("grad"):
            grad = logits if request.inplace else outputs.grad
            grad.copy_(_gradient(z, made, row_scale))
        if outputs.saved is not None:
            weights = request.terms.factors if term_weights is None else term_weights.detach()
            outputs.saved[:, :NUM_SAVED] = 0
            outputs.saved[:, NUM_SAVED:] = torch.as_tensor(weights, dtype=outputs.saved.dtype)
        if request.wants("loss"):
            loss = scaled_loss(row_losses, target, row_scale, request)
            outputs = outputs._replace(loss=loss)
        return outputs._replace(row_losses=row_losses) if request.wants("row_losses") else outputs

    def row_grad_into(
        self,
        grad: Tensor,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor,
        saved: Tensor,
        request: RowRequest,
    ) -> None:
        """See ``Backend.row_grad_into``."""
        if not target.numel():
            return
        weights = saved[:, NUM_SAVED:].t().reshape(-1, *target.shape)
        z, made = self._run(logits, target, weights, request)
        grad.copy_(_gradient(z, made, row_scale))

    def softmax(self, logits: Tensor) -> Tensor:
        """See ``Kernels.softmax``."""
        return softmax(logits, 1 if logits.dim() > 1 else 0)

    def softmax_backward(self, grad: Tensor, probs: Tensor) -> Tensor:
        """See ``Kernels.softmax_backward``."""
        dim = 1 if probs.dim() > 1 else 0
        return torch._softmax_backward_data(grad, probs, dim, probs.dtype)

    def _run(
        self, logits: Tensor, target: Tensor, term_weights: Tensor | None, request: RowRequest
    ) -> tuple[Tensor, ReferenceOutputs]:
        # Compiled code calls operators below autograd, where nothing would be recorded.
        recorded = torch._C._SetExcludeDispatchKeyGuard(_AUTOGRAD, False)
        with recorded, torch.enable_grad():
            z = logits.detach().requires_grad_()
            weights = None if term_weights is None else term_weights.detach()
            made = row_loss(z, target, weights, request.terms, request.ignore_index, self._shards)
        return z, made


def _gradient(z: Tensor, made: ReferenceOutputs, row_scale: Tensor) -> Tensor:
    upstream = row_scale.detach().expand(made.row_losses.shape)
    (grad,) = torch.autograd.grad(made.row_losses, z, upstream)
    return grad
