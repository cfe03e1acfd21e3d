"""Terms of weight 0 that no user names: their losses are what is asked for beside a loss.

They have no gradient, and are finite where the loss of the row is: 0 times infinity would be NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from anl_kernels.terms.base import Term, Terms

if TYPE_CHECKING:
    from anl_kernels.terms.row import Row

_LEAST = -1e38
"""Stands for a log-probability of -inf, and for any below."""


@dataclass(frozen=True)
class _Entropy(Term, registered=False):
    """The entropy of the row's softmax, ``-sum_k p_k l_k``."""

    has_gradient: ClassVar[bool] = False

    def rows(self, row: Row) -> Tensor:
        return row.entropy

    @property
    def functor(self) -> str:
        """Of the kernels."""
        return "entropy"


@dataclass(frozen=True)
class _LogProb(Term, registered=False):
    """log p_y."""

    has_gradient: ClassVar[bool] = False

    def rows(self, row: Row) -> Tensor:
        return row.l_y.detach().clamp(min=_LEAST)

    @property
    def functor(self) -> str:
        """Of the kernels."""
        return "log_prob"


PROBES: dict[str, Term] = {"entropy": _Entropy(), "log_p_y": _LogProb()}
"""The terms by the names of what they find."""
PROBE_CLASSES = {type(term).__name__: type(term) for term in PROBES.values()}


def with_probes(terms: Terms, *names: str) -> Terms:
    """The sum, and after it the named probes."""
    probes = tuple(PROBES[name] for name in names)
    nothing = (None,) * len(probes)
    return Terms(
        terms.terms + probes, terms.factors + (0.0,) * len(probes), terms.tensors + nothing
    )


def found_by(name: str, losses: Tensor) -> Tensor:
    """What is asked for by a name, of the losses of its probe."""
    if name != "log_p_y":
        return losses
    return torch.where(losses > 0.99 * _LEAST, losses, losses - torch.inf)
