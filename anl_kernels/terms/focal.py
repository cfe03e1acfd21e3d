"""Focal terms: FL and its normalised forms. ``f_k = -(1 - p_k)^gamma l_k``.

The official code of APL and ANL detaches the weight ``(1 - p)^gamma`` from the graph, numerator
and denominator; that is the default here. ``detach_weight=False`` gives the true derivative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from anl_kernels.terms.base import Term, require
from anl_kernels.terms.logarithmic import check_min_prob, check_min_prob_at
from anl_kernels.terms.row import Row, fraction
from anl_kernels.terms.symbols import log, operand


@dataclass(frozen=True)
class _Focal(Term):
    @property
    def functor(self) -> str:
        name = type(self).__name__.lower()
        return name if self.detach_weight else f"{name}_true"  # type: ignore[attr-defined]


def _focal(complement: Tensor, log_prob: Tensor, gamma: float, detach: bool) -> Tensor:
    # complement^gamma has an infinite slope at 0 for gamma < 1, where log_prob is 0 too: the
    # product is flat there, which a floor far below any representable 1 - p says without a NaN.
    weight = complement.clamp(min=1e-35).pow(operand(gamma))
    return -(weight.detach() if detach else weight) * log_prob


@dataclass(frozen=True)
class FL(_Focal):
    """Focal loss, ``-(1 - p_y)^gamma l_y``. Source: Lin et al., ICCV 2017."""

    gamma: float = 0.5
    detach_weight: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.gamma < math.inf, self, "gamma", "finite and at least 0")

    def rows(self, row: Row) -> Tensor:
        return _focal(row.rest, row.l_y, self.gamma, bool(self.detach_weight))


@dataclass(frozen=True)
class NFL(_Focal):
    """Normalised focal loss, ``f_y / sum_k f_k``, in [0, 1]. Source: Ma et al., ICML 2020."""

    gamma: float = 0.5
    detach_weight: bool = True
    normalised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.gamma < math.inf, self, "gamma", "finite and at least 0")

    def summands(self, row: Row) -> tuple[Tensor, Tensor]:
        detach = bool(self.detach_weight)
        others = row.total_others(_focal(1 - row.probs, row.log_probs, self.gamma, detach))
        return _focal(row.rest, row.l_y, self.gamma, detach), others

    def rows(self, row: Row) -> Tensor:
        return fraction(*self.summands(row))


@dataclass(frozen=True)
class NNFL(_Focal):
    """Normalised negative focal loss, ``1 - u_y / sum_k u_k`` with ``u = A_g - f``.

    f is taken of log-probabilities clamped at ``log(min_prob)`` and
    ``A_g = -(1 - min_prob)^gamma log(min_prob)``, its largest value. In [0, 1].

    Source: Ye et al., NeurIPS 2023 (ANL-FL).
    """

    gamma: float = 0.5
    min_prob: float = 1e-7
    detach_weight: bool = True
    normalised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.gamma < math.inf, self, "gamma", "finite and at least 0")
        check_min_prob(self)

    def check_num_classes(self, num_classes: int) -> None:
        check_min_prob_at(self, num_classes)

    def scalars(self) -> tuple[Any, ...]:
        """gamma, the clamp on -l, and A_g."""
        clamp = -log(self.min_prob)
        return self.gamma, clamp, operand(1 - self.min_prob) ** operand(self.gamma) * clamp

    def summands(self, row: Row) -> tuple[Tensor, Tensor]:
        gamma, clamp, largest = self.scalars()

        def u(complement: Tensor, log_prob: Tensor) -> Tensor:
            focal = _focal(complement, log_prob, gamma, bool(self.detach_weight))
            return (largest - focal).masked_fill(log_prob < -clamp, 0)

        return u(row.rest, row.l_y), row.total_others(u(1 - row.probs, row.log_probs))

    def rows(self, row: Row) -> Tensor:
        own, others = self.summands(row)
        return fraction(others, own)
