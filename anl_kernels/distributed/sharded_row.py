"""What the reference makes of logits of which each rank has some classes: rows, lse, argmax."""

from __future__ import annotations

import torch
from torch import Tensor

from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.distributed.collectives import CopyToShards, SumOfShards, gather
from anl_kernels.terms.row import Row, lazy


class ShardedRow(Row):
    """:class:`Row` over the ranks' classes: sums and maxima are taken over all of them.

    Shapes: ``logits`` (..., K here), ``target`` (...) as :meth:`ClassShards.labels_here` has it.
    """

    def __init__(self, logits: Tensor, target: Tensor, shards: ClassShards) -> None:
        self.shards = shards
        self.offset = _offset(logits, -1, shards)
        self.logits = logits - self.offset
        places = torch.arange(logits.shape[-1], device=logits.device)
        self.is_target = places == target.unsqueeze(-1)
        self.not_other = (logits == -torch.inf) | self.is_target

    def total_others(self, values: Tensor) -> Tensor:
        """Sum of (..., K here) values over the classes of all ranks, less the target: (...)."""
        return self._total(values.masked_fill(self.not_other, 0))

    @lazy
    def margin(self) -> Tensor:
        """As :attr:`Row.margin`."""
        others = self.logits.masked_fill(self.not_other, -torch.inf)
        return self._of_target - self._logsumexp(others)

    @lazy
    def log_ratio(self) -> Tensor:
        """As :attr:`Row.log_ratio`."""
        return self._of_target.detach()

    @lazy
    def _of_target(self) -> Tensor:
        """The target's logit less the row's largest."""
        return self._total(self.logits.masked_fill(~self.is_target, 0))

    @lazy
    def log_probs(self) -> Tensor:
        """log p_k of the other classes here, and 0 where there is none."""
        return (self.logits - self._mass_here).masked_fill(self.not_other, 0)

    @lazy
    def probs(self) -> Tensor:
        """p_k of every class here."""
        return (self.logits - self._mass_here).exp()

    @lazy
    def lse(self) -> Tensor:
        """Log-sum-exp of the logits of all ranks."""
        return self.mass + self.offset.squeeze(-1)

    @lazy
    def mass(self) -> Tensor:
        """Log-sum-exp of the logits less their offset."""
        return self._logsumexp(self.logits)

    @lazy
    def _mass_here(self) -> Tensor:
        """:attr:`mass` for the classes here, (..., 1): every rank's share in its gradient adds."""
        return CopyToShards.apply(self.mass, self.shards.group).unsqueeze(-1)

    @lazy
    def num_classes(self) -> Tensor:
        """The number of classes that are there, the target included."""
        return self._total((~self.not_other).to(self.logits.dtype)) + 1

    def _total(self, values: Tensor) -> Tensor:
        return SumOfShards.apply(values.sum(-1), self.shards.group)

    def _logsumexp(self, values: Tensor) -> Tensor:
        return logsumexp_of_shards(values, -1, self.shards)


def logsumexp_of_shards(values: Tensor, dim: int, shards: ClassShards) -> Tensor:
    """Log-sum-exp over a dimension that the ranks share, differentiable."""
    offset = _offset(values, dim, shards)
    mass = SumOfShards.apply((values - offset).exp().sum(dim), shards.group)
    # The logarithm of nothing has an infinite slope, where that of -inf is 0.
    empty = mass == 0
    return (mass.masked_fill(empty, 1).log() + offset.squeeze(dim)).masked_fill(empty, -torch.inf)


def argmax_of_shards(logits: Tensor, dim: int, shards: ClassShards) -> Tensor:
    """The class of the largest logit among those of all ranks, the first of equals."""
    top = _amax(logits, dim)
    place = logits.argmax(dim) if logits.shape[dim] else torch.zeros_like(top, dtype=torch.int64)
    return first_of_largest(gather(top, shards.group), gather(place + shards.first, shards.group))


def first_of_largest(values: Tensor, classes: Tensor) -> Tensor:
    """The lowest class, (...), of the largest of (W, ...) values; any where one is NaN."""
    candidates = classes.masked_fill(values < values.amax(0), torch.iinfo(classes.dtype).max)
    return candidates.amin(0)


def _offset(values: Tensor, dim: int, shards: ClassShards) -> Tensor:
    """The maximum over the ranks' classes, a constant: 0 if none is there, NaN if any is NaN."""
    top = gather(_amax(values.detach(), dim), shards.group).amax(0)
    return top.masked_fill(top == -torch.inf, 0).unsqueeze(dim)


def _amax(values: Tensor, dim: int) -> Tensor:
    """The maximum over a dimension that may be empty: -inf then."""
    if values.shape[dim]:
        return values.amax(dim)
    return values.new_full(values.movedim(dim, -1).shape[:-1], -torch.inf)
