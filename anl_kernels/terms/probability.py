"""Terms in the target's probability, and sums of powers of the probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from anl_kernels.terms.base import Term, require
from anl_kernels.terms.row import Row, fraction
from anl_kernels.terms.symbols import at_least, log, operand


@dataclass(frozen=True)
class MAE(Term):
    """Mean absolute error in the scale of its authors' code, ``1 - p_y`` (not ``2 - 2 p_y``).

    Source: Ghosh et al., AAAI 2017; code of Ma et al., ICML 2020.
    """

    def rows(self, row: Row) -> Tensor:
        return row.rest


@dataclass(frozen=True)
class GCE(Term):
    """Generalised cross entropy, ``(1 - p_y^q) / q``.

    ``min_prob`` clamps p_y from below, as the official code does at 1e-7; the gradient is dead
    under the clamp, so the default is the exact form, computed in log space.

    Source: Zhang and Sabuncu, NeurIPS 2018.
    """

    q: float = 0.7
    min_prob: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.q < math.inf, self, "q", "finite and above 0 (its limit at 0 is CE)")
        _check_optional_min_prob(self)

    def scalars(self) -> tuple[Any, ...]:
        """q and the lower bound on l_y."""
        return self.q, _log_or_minus_inf(self.min_prob)

    def rows(self, row: Row) -> Tensor:
        l_y = at_least(row.l_y, log(self.min_prob)) if self.min_prob else row.l_y
        return -torch.expm1(self.q * l_y) / self.q


@dataclass(frozen=True)
class RCE(Term):
    """Reverse cross entropy, ``-log(log_clip) (1 - p_y)``: 9.2103 (1 - p_y) by default.

    ``log_clip`` stands for the zeros of the one-hot label under the logarithm. ``min_prob=1e-7``
    reproduces the official code, which clamps every probability before it sums those of the
    other classes (a constant bias of 9.2103e-7 for each clamped class).

    Source: Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", ICCV 2019.
    """

    log_clip: float = 1e-4
    min_prob: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.log_clip < 1, self, "log_clip", "in (0, 1)")
        _check_optional_min_prob(self)

    @property
    def functor(self) -> str:
        return "rce_clamped" if self.min_prob else "rce"

    def scalars(self) -> tuple[Any, ...]:
        """The factor and the clamp."""
        return -log(self.log_clip), self.min_prob

    def rows(self, row: Row) -> Tensor:
        factor, min_prob = self.scalars()
        if not min_prob:
            return factor * row.rest
        return factor * row.total_others(at_least(row.probs, operand(min_prob)))


@dataclass(frozen=True)
class AGCE(Term):
    """Asymmetric generalised cross entropy, ``((a + 1)^q - (a + p_y)^q) / q``.

    Source: Zhou et al., "Asymmetric Loss Functions for Learning with Noisy Labels", ICML 2021.
    """

    a: float
    q: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.a < math.inf, self, "a", "finite and above 0")
        require(0 < self.q < math.inf, self, "q", "finite and above 0")

    def rows(self, row: Row) -> Tensor:
        q, top = operand(self.q), operand(self.a + 1)
        return -(top**q) * torch.expm1(q * torch.log1p(-row.rest / top)) / q


@dataclass(frozen=True)
class AUL(Term):
    """Asymmetric unhinged loss, ``((a - p_y)^q - (a - 1)^q) / q``.

    Source: Zhou et al., ICML 2021.
    """

    a: float
    q: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 < self.a < math.inf, self, "a", "finite and above 1")
        require(0 < self.q < math.inf, self, "q", "finite and above 0")

    def rows(self, row: Row) -> Tensor:
        q, base = operand(self.q), operand(self.a - 1)
        return base**q * torch.expm1(q * torch.log1p(row.rest / base)) / q


@dataclass(frozen=True)
class AEL(Term):
    """Asymmetric exponential loss, ``exp(-p_y / a)``. Source: Zhou et al., ICML 2021."""

    a: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.a < math.inf, self, "a", "finite and above 0")

    def rows(self, row: Row) -> Tensor:
        return torch.exp(-row.p_y / self.a)


@dataclass(frozen=True)
class DFT(Term):
    """Dynamic fine-tuning, ``-p_y l_y`` with p_y taken as a constant: the gradient of ``1 - p_y``.

    Source: Wu et al., "On the Generalization of SFT", 2025.
    """

    def rows(self, row: Row) -> Tensor:
        return -row.p_y.detach() * row.l_y


@dataclass(frozen=True)
class NGCE(Term):
    """Normalised GCE, ``(1 - p_y^q) / sum_k (1 - p_k^q)``, in [0, 1].

    ``min_prob=1e-7`` reproduces the official clamp of every probability. Source: Ma et al., ICML
    2020.
    """

    q: float = 0.7
    min_prob: float = 0.0
    normalised: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.q < math.inf, self, "q", "finite and above 0")
        _check_optional_min_prob(self)

    def scalars(self) -> tuple[Any, ...]:
        """q and the lower bound on l."""
        return self.q, _log_or_minus_inf(self.min_prob)

    def summands(self, row: Row) -> tuple[Tensor, Tensor]:
        q, floor = self.scalars()

        def v(log_prob: Tensor) -> Tensor:
            return -torch.expm1(q * at_least(log_prob, floor))

        return v(row.l_y), row.total_others(v(row.log_probs))

    def rows(self, row: Row) -> Tensor:
        return fraction(*self.summands(row))


@dataclass(frozen=True)
class AMSE(Term):
    """Asymmetric mean squared error, ``sum_k (p_k - a [k = y])^2 / K``.

    Source: "Joint Asymmetric Loss for Learning with Noisy Labels", ICCV 2025 (JAL).
    """

    a: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.a < math.inf, self, "a", "finite and above 0")

    def rows(self, row: Row) -> Tensor:
        others = row.total_others(row.probs.square())
        return (others + (operand(1 - self.a) - row.rest).square()) / row.num_classes


def _check_optional_min_prob(term: GCE | RCE | NGCE) -> None:
    require(0 <= term.min_prob < 1, term, "min_prob", "in [0, 1)")


def _log_or_minus_inf(probability: float) -> Any:
    return log(probability) if probability else -math.inf
