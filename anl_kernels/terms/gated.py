"""Losses of fine-tuning that trust the model where it is sure: gates on p_y, and on the whole row.

What the entropy or the concentration of a row makes of the loss is a constant to the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from anl_kernels.terms.base import Term, require
from anl_kernels.terms.row import Row
from anl_kernels.terms.symbols import operand


@dataclass(frozen=True)
class _Threshold(Term):
    """A function of p_y on one side of a threshold, 0 on the other."""

    threshold: float
    above: ClassVar[bool]
    """Which side counts; the threshold itself does in either case."""
    of_log: ClassVar[bool]
    """Whether the function is ``-l_y``, else it is ``1 - p_y``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.above:
            require(0 <= self.threshold < 1, self, "threshold", "in [0, 1)")
        else:
            require(0 < self.threshold <= 1, self, "threshold", "in (0, 1]")

    @property
    def functor(self) -> str:
        return "log_between" if self.of_log else "prob_between"

    def scalars(self) -> tuple[Any, ...]:
        """The least and the largest p_y that counts."""
        return (self.threshold, 1.0) if self.above else (0.0, self.threshold)

    def rows(self, row: Row) -> Tensor:
        threshold, value = operand(self.threshold), -row.l_y if self.of_log else row.rest
        outside = row.p_y < threshold if self.above else row.p_y > threshold
        return value.masked_fill(outside, 0)


@dataclass(frozen=True)
class OnlyTopP(_Threshold):
    """``1 - p_y`` where ``p_y >= threshold``, else 0: of labels that the model finds likely.

    Source: Li et al., "Beyond Log Likelihood: Probability-Based Objectives for Supervised
    Fine-Tuning across the Model Capability Continuum", 2025; the names are those of its code.
    """

    above: ClassVar[bool] = True
    of_log: ClassVar[bool] = False


@dataclass(frozen=True)
class OnlyBottomP(_Threshold):
    """``1 - p_y`` where ``p_y <= threshold``, else 0. Source: Li et al., 2025."""

    above: ClassVar[bool] = False
    of_log: ClassVar[bool] = False


@dataclass(frozen=True)
class OnlyTopLogP(_Threshold):
    """``-l_y`` where ``p_y >= threshold``, else 0. Source: Li et al., 2025."""

    above: ClassVar[bool] = True
    of_log: ClassVar[bool] = True


@dataclass(frozen=True)
class OnlyBottomLogP(_Threshold):
    """``-l_y`` where ``p_y <= threshold``, else 0. Source: Li et al., 2025."""

    above: ClassVar[bool] = False
    of_log: ClassVar[bool] = True


@dataclass(frozen=True)
class EAFT(Term):
    """Entropy-adaptive fine-tuning, ``-(H / unit)^alpha l_y`` with the weight held constant.

    H is the entropy of the row, ``-sum_k p_k l_k`` over all classes. Cross entropy where the model
    is unsure; next to nothing where it is sure, above all where it is sure of another class than
    the label. The official code takes the entropy of the 20 largest probabilities, made to sum to
    1, for an approximation of H, and divides it by 3.0, about log 20: that is ``unit``. Of few
    classes, ``unit=math.log(K)`` makes the largest weight 1.

    Source: Diao et al., "Entropy-Adaptive Fine-Tuning: Resolving Confident Conflicts to Mitigate
    Forgetting", 2026; the divisor from the authors' code.
    """

    alpha: float = 1.0
    unit: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.alpha < math.inf, self, "alpha", "finite and above 0 (at 0 it is CE)")
        require(0 < self.unit < math.inf, self, "unit", "finite and above 0")

    def rows(self, row: Row) -> Tensor:
        return -((row.entropy / operand(self.unit)) ** operand(self.alpha)) * row.l_y


@dataclass(frozen=True)
class DEFT(Term):
    """Dynamic entropy fine-tuning, ``(1 - p_y^q) / q`` with ``q = sum_k p_k^2`` held constant.

    GCE whose q is the concentration of the row, the exponential of its negative Renyi entropy of
    order 2: cross entropy where the model is unsure, ``1 - p_y`` where it is sure. The official
    code divides by ``q + 1e-6``.

    Source: Wang et al., "Gradients Must Earn Their Influence: Unifying SFT with Generalized
    Entropic Objectives", 2026.
    """

    def rows(self, row: Row) -> Tensor:
        q = row.total_others(row.probs.detach().square()) + row.p_y.detach().square()
        return -torch.expm1(q * row.l_y) / q
