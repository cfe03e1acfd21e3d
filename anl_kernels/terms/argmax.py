"""Terms that compare the label with the row's largest probability."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anl_kernels.terms.base import Term, require
from anl_kernels.terms.row import Row
from anl_kernels.terms.symbols import at_least, log, operand


@dataclass(frozen=True)
class RelativeGCE(Term):
    """Relative GCE, ``-(p_y / max_k p_k)^q l_y`` with the weight held constant.

    The gradient is cross entropy's times ``(p_y / max_k p_k)^q``, where GCE's is times ``p_y^q``.
    At uniform logits the weight is 1: it starts as cross entropy does at any number of classes. It
    fades only where the model prefers another class, which is where labels are wrong.

    This package's own.
    """

    q: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.q < math.inf, self, "q", "finite and above 0 (at 0 it is CE)")

    def rows(self, row: Row) -> Tensor:
        weight = torch.exp(operand(self.q) * row.log_ratio)
        return -weight * row.l_y


@dataclass(frozen=True)
class _Epsilon(Term):
    """What epsilon-softmax makes of the target's probability; subclasses add ``min_prob``."""

    m: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.m < math.inf, self, "m", "finite and at least 0 (at 0 it is softmax)")
        require(0 <= self._min_prob < 1, self, "min_prob", "in [0, 1)")

    @property
    def _min_prob(self) -> float:
        return self.min_prob  # type: ignore[attr-defined]

    @property
    def _floor(self) -> Any:
        """The lower bound on log p'."""
        return log(self._min_prob) if self._min_prob else -math.inf

    def _log_prob(self, row: Row) -> Tensor:
        """log p'_y, p' = (p + m [k = argmax]) / (1 + m), clamped at log(min_prob)."""
        m, total, is_top = operand(self.m), operand(1 + self.m), row.log_ratio == 0
        # Of the two the one that keeps its digits; where neither is wanted, numbers without harm.
        rest = row.rest.masked_fill(~is_top, 0) / total
        prob = (row.p_y.masked_fill(~is_top, 1) + m) / total
        of_top = torch.where(prob < 0.5, prob.log(), torch.log1p(-rest))
        log_prob = torch.where(is_top, of_top, row.l_y - log(1 + self.m))
        return at_least(log_prob, self._floor) if self._min_prob else log_prob


@dataclass(frozen=True)
class EpsilonCE(_Epsilon):
    """Cross entropy of epsilon-softmax, ``-log p'_y`` with ``p' = (p + m [k = argmax]) / (1 + m)``.

    The row's largest probability is made larger still: a label that is the argmax costs next to
    nothing, and any other costs ``log(1 + m)`` more than cross entropy, with its gradient. A label
    that ties with the largest counts as the argmax, where the official code takes one of the ties.

    The official code clamps p' at 1e-8, which is ``min_prob=1e-8``; at its m of 1e2 to 1e5 that is
    no detail, since the gradient of a label with ``p_y < (1 + m) min_prob`` is 0. The default is
    the exact form.

    Source: Wang et al., "Epsilon-Softmax: Approximating One-Hot Vectors for Mitigating Label
    Noise", NeurIPS 2024.
    """

    min_prob: float = 0.0

    def scalars(self) -> tuple[Any, ...]:
        """m and the lower bound on log p'."""
        return self.m, self._floor

    def rows(self, row: Row) -> Tensor:
        return -self._log_prob(row)


@dataclass(frozen=True)
class EpsilonFL(_Epsilon):
    """Focal loss of epsilon-softmax, ``-(1 - p'_y)^gamma log p'_y`` with the weight held constant.

    ``p' = (p + m [k = argmax]) / (1 + m)``; ties and ``min_prob`` as in :class:`EpsilonCE`.
    """

    gamma: float = 0.1
    min_prob: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.gamma < math.inf, self, "gamma", "finite and at least 0")

    def scalars(self) -> tuple[Any, ...]:
        """m, gamma and the lower bound on log p'."""
        return self.m, self.gamma, self._floor

    def rows(self, row: Row) -> Tensor:
        log_prob = self._log_prob(row)
        weight = (-torch.expm1(log_prob.detach())).clamp(min=1e-35) ** operand(self.gamma)
        return -weight * log_prob
