"""Terms in the log-probabilities: CE, NCE, NNCE, and the z-loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from anl_kernels.terms.base import Term, require
from anl_kernels.terms.row import Row, fraction
from anl_kernels.terms.symbols import at_most, log


@dataclass(frozen=True)
class CE(Term):
    """Cross entropy, ``-l_y``; with label smoothing as in ``torch.nn.CrossEntropyLoss``."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.label_smoothing <= 1, self, "label_smoothing", "in [0, 1]")

    @property
    def functor(self) -> str:
        return "ce_smoothed" if self.label_smoothing else "ce"

    def rows(self, row: Row) -> Tensor:
        if not self.label_smoothing:
            return -row.l_y
        smooth = -(row.l_y + row.total_others(row.log_probs)) / row.num_classes
        return (1 - self.label_smoothing) * -row.l_y + self.label_smoothing * smooth


@dataclass(frozen=True)
class NCE(Term):
    """Normalised cross entropy, ``l_y / sum_k l_k``, in [0, 1].

    Source: Ma et al., "Normalized Loss Functions for Deep Learning with Noisy Labels", ICML 2020.
    """

    normalised: ClassVar[bool] = True

    def summands(self, row: Row) -> tuple[Tensor, Tensor]:
        return row.l_y, row.total_others(row.log_probs)

    def rows(self, row: Row) -> Tensor:
        return fraction(*self.summands(row))


@dataclass(frozen=True)
class NNCE(Term):
    """Normalised negative cross entropy, ``1 - u_y / sum_k u_k`` with ``u = A + log clamp(p)``.

    ``A = -log(min_prob)`` and the probability is clamped to [min_prob, prob_max]. In [0, 1].
    ``min_prob`` must stay below 1/K: at 1/K the denominator is empty for uniform logits.
    ANL-CE-ER clamps at ``prob_max=1 - min_prob`` too; follow-up papers use ``min_prob=1e-8``.

    Source: Ye et al., "Active Negative Loss Functions for Learning with Noisy Labels", NeurIPS
    2023.
    """

    min_prob: float = 1e-7
    prob_max: float = 1.0
    normalised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_min_prob(self)
        require(self.min_prob < self.prob_max <= 1, self, "prob_max", "in (min_prob, 1]")

    @property
    def functor(self) -> str:
        return "nnce" if self.prob_max == 1 else "nnce_bounded"

    def check_num_classes(self, num_classes: int) -> None:
        check_min_prob_at(self, num_classes)

    def scalars(self) -> tuple[Any, ...]:
        """The offset A, and the upper bound on l: none for prob_max 1, as l may round above 0."""
        ceiling = log(self.prob_max) if self.prob_max < 1 else math.inf
        return -log(self.min_prob), ceiling

    def summands(self, row: Row) -> tuple[Tensor, Tensor]:
        offset, ceiling = self.scalars()

        def u(log_prob: Tensor) -> Tensor:
            bounded = log_prob if self.prob_max == 1 else at_most(log_prob, ceiling)
            return (offset + bounded).clamp(min=0)

        return u(row.l_y), row.total_others(u(row.log_probs))

    def rows(self, row: Row) -> Tensor:
        own, others = self.summands(row)
        return fraction(others, own)


@dataclass(frozen=True)
class ZLoss(Term):
    """The squared log-partition, ``(log sum_k exp z_k)^2``, which keeps logits from drifting.

    Source: Chowdhery et al., "PaLM", 2022 (there with weight 1e-4). It ignores the target.
    """

    def rows(self, row: Row) -> Tensor:
        return row.lse.square()


def check_min_prob(term: Term) -> None:
    """A lower clamp that a logarithm is taken of must be a probability above 0."""
    require(0 < term.min_prob < 1, term, "min_prob", "in (0, 1)")  # type: ignore[attr-defined]


def check_min_prob_at(term: Term, num_classes: int) -> None:
    """At ``min_prob >= 1/K`` uniform logits clamp every class and the denominator is empty."""
    min_prob: float = term.min_prob  # type: ignore[attr-defined]
    if num_classes > 1 and min_prob * num_classes >= 1:
        raise ValueError(
            f"{type(term).__name__}: min_prob must be below 1 / num_classes = "
            f"{1 / num_classes:.3g} (num_classes is {num_classes}), got {min_prob}: uniform "
            f"logits would have an empty denominator; min_prob={0.01 / num_classes:.0e} works"
        )
