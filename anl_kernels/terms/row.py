"""What a term sees of the logits, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from anl_kernels.tracing import forward_mode, plain_cpu


def may_ask(tensor: Tensor) -> bool:
    """Whether a value may decide what runs: a CPU's, in a call that nobody records."""
    # Not every Function has a formula for forward mode.
    return plain_cpu(tensor) and not forward_mode()


class lazy:
    """A cached property; before Python 3.12 ``functools``' holds a lock, which Dynamo refuses."""

    def __init__(self, compute: Callable[[Any], Tensor]) -> None:
        self.compute = compute

    def __get__(self, row: Any, owner: type) -> Tensor:
        value = self.compute(row)
        row.__dict__[self.compute.__name__] = value
        return value


class Row:
    """Log-probabilities of rows of logits and of their targets, in numerically sound form.

    Shapes: ``logits`` (..., K) float32 or float64, ``target`` (...) int64 in [0, K). Everything
    here is twice differentiable. A logit of -inf is a class that is not there: it enters no sum
    and is not counted in ``num_classes``.

    A sum over classes is taken over the others and the target apart, and the target's
    log-probability comes from its margin over the others: ``rest`` = 1 - p_y, and the gradient at
    the target, keep their digits when p_y is close to 1.
    """

    def __init__(self, logits: Tensor, target: Tensor) -> None:
        # Differences of logits survive an offset common to the row only if it goes first.
        top = logits.detach().amax(-1, keepdim=True)
        self.offset = top.masked_fill(top == -torch.inf, 0)
        self.logits = logits - self.offset
        self.target = target.unsqueeze(-1)
        # 1 and not True, which jit.trace does not take.
        self.not_other = (logits == -torch.inf).scatter(-1, self.target, 1)

    def total_others(self, values: Tensor) -> Tensor:
        """Sum of (..., K) values over the classes that are there, less the target: (...)."""
        return values.masked_fill(self.not_other, 0).sum(-1)

    @lazy
    def margin(self) -> Tensor:
        """log(p_y / (1 - p_y)): the target's logit less the log-sum-exp of the others."""
        others = self.logits.masked_fill(self.not_other, -torch.inf)
        return self.logits.gather(-1, self.target).squeeze(-1) - others.logsumexp(-1)

    @lazy
    def l_y(self) -> Tensor:
        """log p_y."""
        return F.logsigmoid(self.margin)

    @lazy
    def p_y(self) -> Tensor:
        """Probability of the target."""
        return _sigmoid(self.margin)

    @lazy
    def rest(self) -> Tensor:
        """1 - p_y, with full relative precision."""
        return _sigmoid(-self.margin)

    @lazy
    def log_ratio(self) -> Tensor:
        """log(p_y / max p), without a gradient: exactly 0 if no other logit is larger."""
        return self.logits.detach().gather(-1, self.target).squeeze(-1)

    @lazy
    def log_probs(self) -> Tensor:
        """log p_k of the other classes, finite everywhere: what :meth:`total_others` sums."""
        return self.logits.log_softmax(-1).masked_fill(self.not_other, 0)

    @lazy
    def probs(self) -> Tensor:
        """p_k of every class."""
        return self.logits.softmax(-1)

    @lazy
    def entropy(self) -> Tensor:
        """``-sum_k p_k l_k`` over all classes, without a gradient."""
        p, p_y = self.probs.detach(), self.p_y.detach()
        own = (p_y * self.l_y.detach()).masked_fill(p_y == 0, 0)
        return -(self.total_others(p * self.log_probs.detach()) + own)

    @lazy
    def lse(self) -> Tensor:
        """Log-sum-exp of the logits."""
        return self.logits.logsumexp(-1) + self.offset.squeeze(-1)

    @lazy
    def num_classes(self) -> Tensor:
        """The number of classes that are there, the target included."""
        return (~self.not_other).sum(-1).to(self.logits.dtype) + 1


def _sigmoid(x: Tensor) -> Tensor:
    """The sigmoid with a derivative that keeps its digits where the value is close to 1."""
    return torch.where(x < 0, x.sigmoid(), 1 - (-x).sigmoid())


def fraction(part: Tensor, other: Tensor) -> Tensor:
    """``part / (part + other)`` for numbers of one sign; 1 where both are 0.

    Divides the smaller by the larger: in the plain quotient the derivatives are differences that
    cancel when one is K times the other.
    """
    smaller = part.abs() < other.abs()
    if may_ask(part):  # what one of the two holds for alone needs no masks
        if bool(smaller.all()):
            x = part / other
            return x / (1 + x)
        if not bool((smaller | (part == 0)).any()):
            return 1 / (1 + other / part)
    x = part.masked_fill(~smaller, 0) / other.masked_fill(~smaller, 1)
    y = other.masked_fill(smaller, 0) / part.masked_fill(smaller | (part == 0), 1)
    return torch.where(smaller, x / (1 + x), 1 / (1 + y))
