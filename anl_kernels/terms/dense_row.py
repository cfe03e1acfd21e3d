"""Rows in which every class is there: what most are, in half the passes over the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anl_kernels.terms.row import Row, lazy, may_ask

MANY = 256
"""Classes from which on a copy of the values costs more than to look whether it is needed."""


def row_of(logits: Tensor, target: Tensor) -> Row:
    """A :class:`DenseRow` if the values of the logits allow it and may be asked, else a Row."""
    if may_ask(logits) and logits.numel() and bool(logits.detach().sum().isfinite()):
        row = DenseRow(logits, target)
        # Above, neither the mass of the others nor its square, in second derivatives, underflows.
        if bool(row.mass.detach().min() > torch.finfo(logits.dtype).tiny ** 0.5):
            return row
    return Row(logits, target)


class DenseRow(Row):
    """:class:`Row` of finite logits, where the other classes together are not next to nothing.

    No logit needs a mask then, and one softmax serves everything.
    """

    def __init__(self, logits: Tensor, target: Tensor) -> None:
        self.logits = logits
        self.target = target.unsqueeze(-1)
        self.log_probs = logits.log_softmax(-1)
        self.mass: Tensor = _MassOfOthers.apply(self.log_probs, self.target)

    def total_others(self, values: Tensor) -> Tensor:
        """As :meth:`Row.total_others`."""
        return _SumOfOthers.apply(values, self.target)

    @lazy
    def margin(self) -> Tensor:
        """As :attr:`Row.margin`."""
        return self.log_probs.gather(-1, self.target).squeeze(-1) - self.mass.log()

    @lazy
    def log_ratio(self) -> Tensor:
        """As :attr:`Row.log_ratio`."""
        logits = self.logits.detach()
        return logits.gather(-1, self.target).squeeze(-1) - logits.amax(-1)

    @lazy
    def probs(self) -> Tensor:
        """p_k of every class."""
        return self.log_probs.exp()

    @lazy
    def lse(self) -> Tensor:
        """Log-sum-exp of the logits, whose gradient survives an offset common to the row."""
        top = self.logits.detach().amax(-1, keepdim=True)
        return (self.logits - top).logsumexp(-1) + top.squeeze(-1)

    @lazy
    def num_classes(self) -> Tensor:
        """All of them."""
        return torch.full_like(self.mass.detach(), self.logits.shape[-1])


class _SumOfOthers(torch.autograd.Function):
    """``apply(values, target)``: the sum of (..., K) without the target's (..., 1) place.

    As a Function, so that no masked copy is kept for backward.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(target)
        ctx.shape = values.shape
        if values.shape[-1] >= MANY:
            own = values.gather(-1, target).squeeze(-1)
            others = values.sum(-1) - own
            if bool((own.abs() <= others.abs()).all()):  # else the difference has lost its digits
                return others
        return values.scatter(-1, target, 0).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (target,) = ctx.saved_tensors
        return grad.unsqueeze(-1).expand(ctx.shape).scatter(-1, target, 0), None


class _MassOfOthers(torch.autograd.Function):
    """``apply(log_probs, target)``: the probability of all classes but the target."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, target: Tensor) -> Tensor:
        probs = log_probs.exp().scatter_(-1, target, 0)
        ctx.save_for_backward(log_probs, target, probs)
        return probs.sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        log_probs, target, probs = ctx.saved_tensors
        if torch.is_grad_enabled():
            probs = log_probs.exp().scatter(-1, target, 0)
        return grad.unsqueeze(-1) * probs, None
