"""A normalised term whose gradient does not fade with the number of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from anl_kernels.terms.base import Term, Terms

if TYPE_CHECKING:
    from anl_kernels.terms.row import Row


@dataclass(frozen=True)
class Balanced(Term, registered=False):
    """A normalised term with the gradient of each row times the row's denominator, a constant.

    The loss is the term's own. ``class_scale="row"`` makes these; docs/math.md, "Balanced losses",
    says why the factor leaves the loss as tolerant of noise as it was.
    """

    term: Term
    normalised: ClassVar[bool] = True

    def rows(self, row: Row) -> Tensor:
        loss, size = self.term.rows(row), self.term.denominator(row)
        # That of an absent label is infinite, and its row has no gradient.
        factor = size.masked_fill(size == torch.inf, 0)
        return loss.detach() + factor * (loss - loss.detach())

    def summands(self, row: Row) -> tuple[Tensor, Tensor]:
        return self.term.summands(row)

    @property
    def functor(self) -> str:
        return self.term.functor

    @property
    def may_have_kernel(self) -> bool:
        return self.term.may_have_kernel

    def scalars(self) -> tuple[float, ...]:
        return self.term.scalars()

    def check_num_classes(self, num_classes: int) -> None:
        self.term.check_num_classes(num_classes)


def balanced(terms: Terms) -> Terms:
    """A sum of terms with its normalised ones balanced."""
    made = tuple(Balanced(term) if term.normalised else term for term in terms.terms)
    return Terms(made, terms.factors, terms.tensors)
