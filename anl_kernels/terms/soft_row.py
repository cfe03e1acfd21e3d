"""What a term sees of the logits where every class of a row is its label in turn."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anl_kernels.terms.row import Row, _sigmoid, lazy


class SoftRow(Row):
    """A :class:`Row` for each label at once: what is of the label has shape (..., K), not (...).

    A term's formula of it is the term's loss of every label, (..., K) or what broadcasts to that,
    in the time and memory of a few tensors of the logits' size.

    What all classes have in common is added up once. Of a sum less a label's own part the rest
    keeps its digits if the part is the smaller half; so the largest has a sum of the others' own.
    """

    def __init__(self, logits: Tensor) -> None:
        top = logits.detach().amax(-1, keepdim=True)
        self.offset = top.masked_fill(top == -torch.inf, 0)
        self.logits = logits - self.offset
        self.absent = logits == -torch.inf

    @property
    def target(self) -> Tensor:  # type: ignore[override]
        """There is none."""
        raise TypeError(
            "soft targets need terms whose formula says of a row's label only l_y, p_y, rest, "
            "margin and log_ratio, and sums over classes with total_others: this term reads "
            "row.target; write it without, or pass class indices"
        )

    not_other = target

    def total_others(self, values: Tensor) -> Tensor:
        """Sum of (..., K) values over the classes that are there, less each label: (..., K)."""
        return _without_own(values.masked_fill(self.absent, 0))

    @lazy
    def margin(self) -> Tensor:
        """log(p_k / (1 - p_k)) of every class."""
        is_top = _at_largest(self.logits)
        # Of the largest the others are summed; they may be nothing beside it.
        others_of_top = self.logits.masked_fill(is_top, -torch.inf).logsumexp(-1, keepdim=True)
        mass = self.logits.exp()
        others = (mass.sum(-1, keepdim=True) - mass).masked_fill(is_top, 1).log()
        return self.logits - torch.where(is_top, others_of_top, others)

    @lazy
    def l_y(self) -> Tensor:
        """log p_k of every class."""
        return F.logsigmoid(self.margin)

    @lazy
    def p_y(self) -> Tensor:
        """p_k of every class."""
        return _sigmoid(self.margin)

    @lazy
    def rest(self) -> Tensor:
        """1 - p_k of every class, with full relative precision."""
        return _sigmoid(-self.margin)

    @lazy
    def log_ratio(self) -> Tensor:
        """log(p_k / max p) of every class, without a gradient."""
        return self.logits.detach()

    @lazy
    def log_probs(self) -> Tensor:
        """log p_k of the classes that are there, else 0."""
        return self.logits.log_softmax(-1).masked_fill(self.absent, 0)

    @lazy
    def lse(self) -> Tensor:
        """Log-sum-exp of the logits, (..., 1)."""
        return self.logits.logsumexp(-1, keepdim=True) + self.offset

    @lazy
    def num_classes(self) -> Tensor:
        """The number of classes that are there, each label included."""
        return (~self.absent).sum(-1, keepdim=True).to(self.logits.dtype) + self.absent


def _without_own(values: Tensor) -> Tensor:
    largest = _at_largest(values.abs())
    others_of_largest = values.masked_fill(largest, 0).sum(-1, keepdim=True)
    return torch.where(largest, others_of_largest, values.sum(-1, keepdim=True) - values)


def _at_largest(values: Tensor) -> Tensor:
    """Whether a class is that of the row's largest value, the first of equals."""
    place = values.detach().argmax(-1, keepdim=True)
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, place, True)
