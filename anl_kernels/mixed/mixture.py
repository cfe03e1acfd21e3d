"""What the loss of a row with more than one label is a sum of, and its plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anl_kernels.backends import reference
from anl_kernels.interface import accumulator_dtype
from anl_kernels.terms import CE, Term, Terms
from anl_kernels.terms.soft_row import SoftRow


class Distribution(NamedTuple):
    """Labels of rows that are shares of all classes: the loss is linear in them.

    Cross entropy has a fused form for the shares t_k w_k it is left with; the other terms have the
    loss of every label, by formula.
    """

    target: Tensor | None
    """Shares t_k, of the logits' shape. None where rows have a label of their own: what label
    smoothing spreads is left, with T = 1."""
    weight: Tensor | None
    """(K,) factors w_k on the classes."""
    kept: float | Tensor
    """Of cross entropy on the shares themselves."""
    spread: float | Tensor
    """Of cross entropy on what label smoothing gives to every class, T / K with T = sum_k t_k."""
    others: Terms | None
    """The terms that are not cross entropy, where there are shares."""

    def shares(self, z: Tensor, all_there: bool = False) -> Tensor:
        """What cross entropy weighs the classes with: shape of the logits, or what broadcasts.

        ``all_there`` promises that no logit is -inf.
        """
        weight = None if self.weight is None else _of_classes(self.weight.to(z.dtype), z)
        target = None if self.target is None else self.target.to(z.dtype)
        if _is_zero(self.spread):
            assert target is not None
            return _product(_product(target, self.kept), weight)
        if all_there:
            even = z.new_ones((1,) * z.dim()) * (self.spread / z.shape[1])
        else:
            there = (z > -torch.inf).to(z.dtype)
            even = there * (self.spread / there.sum(1, keepdim=True).clamp(min=1))
        if target is not None:
            even = even * target.sum(1, keepdim=True) + _product(target, self.kept)
        return _product(even, weight)

    def weighted_target(self, z: Tensor) -> Tensor:
        """t_k w_k."""
        assert self.target is not None
        weight = None if self.weight is None else _of_classes(self.weight.to(z.dtype), z)
        return _product(self.target.to(z.dtype), weight)

    @property
    def has_cross_entropy(self) -> bool:
        """Whether shares are weighed at all."""
        return not (_is_zero(self.kept) and _is_zero(self.spread))


class Mixture(NamedTuple):
    """The loss of rows: a sum over their labels, and over a distribution.

    Row-shaped tensors have the logits' shape less K. Scales are 0-d or row-shaped.
    """

    terms: Terms
    """Of the labels."""
    ignore_index: int
    labels: tuple[Tensor, ...]
    """None, one or two."""
    scales: tuple[Tensor, ...]
    """The factor on the loss of each label; 0 in rows whose label does not count."""
    distribution: Distribution | None
    distribution_scale: Tensor | None
    """The factor on its loss."""
    base: Tensor
    """A label of each row that counts if any does; 0 where rows have none."""

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """Whatever may need a gradient, but for the logits."""
        shares = self.distribution
        given: tuple[Any, ...] = (*self.scales, self.distribution_scale, *self.terms.tensors)
        if shares is not None:
            others = () if shares.others is None else shares.others.tensors
            given += (shares.target, shares.weight, shares.kept, shares.spread, *others)
        return tuple(tensor for tensor in given if isinstance(tensor, Tensor))

    def select(
        self, of_rows: Callable[[Tensor], Tensor], of_logits: Callable[[Tensor], Tensor]
    ) -> Mixture:
        """The same with some of the rows of its tensors: row-shaped ones, and those like logits."""

        def of_scale(scale: Tensor) -> Tensor:
            return scale if scale.dim() == 0 else of_rows(scale)

        shares, scale = self.distribution, self.distribution_scale
        if shares is not None and shares.target is not None:
            shares = shares._replace(target=of_logits(shares.target))
        return self._replace(
            labels=tuple(map(of_rows, self.labels)),
            scales=tuple(map(of_scale, self.scales)),
            distribution=shares,
            distribution_scale=None if scale is None else of_scale(scale),
            base=of_rows(self.base),
        )


def split(terms: Terms) -> tuple[float | Tensor, float | Tensor, Terms | None]:
    """``kept`` and ``spread`` of the cross entropies in a sum, and the terms that are none."""
    kept: float | Tensor = 0.0
    spread: float | Tensor = 0.0
    others = []
    for weight, term in terms:
        if type(term) is CE:
            kept = kept + weight * (1 - term.label_smoothing)
            spread = spread + weight * term.label_smoothing
        else:
            others.append(weight * term)
    return kept, spread, (sum(others) if others else None)  # type: ignore[return-value]


def without_smoothing(terms: Terms) -> tuple[Terms, float | Tensor]:
    """The sum with what smoothed cross entropies leave to the label, and the factor they spread."""
    spread: float | Tensor = 0.0
    parts = []
    for weight, term in terms:
        if type(term) is CE and term.label_smoothing:
            spread = spread + weight * term.label_smoothing
            parts.append((weight * (1 - term.label_smoothing)) * CE())
        else:
            parts.append(weight * term)
    return sum(parts), spread  # type: ignore[return-value]


def smooths(terms: Terms) -> bool:
    """Whether some cross entropy spreads its label over the classes."""
    return any(type(term) is CE and term.label_smoothing for term in terms.terms)


def distribution_losses(logits: Tensor, distribution: Distribution) -> Tensor:
    """The loss of every row, without scale: the definition, differentiable in everything.

    ``logits`` have their classes in dimension 1.
    """
    z = logits.to(accumulator_dtype(logits.dtype))
    losses = z.new_zeros(z.shape[:1] + z.shape[2:])
    if distribution.has_cross_entropy:
        shares = distribution.shares(z)
        l = z.log_softmax(1)
        # A class that is not there has l = -inf; without a share of it, that is 0.
        l = l.masked_fill((l == -torch.inf) & (shares == 0), 0)
        losses = losses - (shares * l).sum(1)
    if distribution.others is not None:
        losses = losses + losses_by_label(z, distribution, distribution.others)
    return losses


def losses_by_label(z: Tensor, distribution: Distribution, terms: Terms) -> Tensor:
    """``sum_k t_k w_k L_k`` of every row, the losses of every label by their formulas."""
    target = distribution.weighted_target(z).movedim(1, -1)
    made = torch.stack(torch.broadcast_tensors(*(w * loss for w, loss in _by_term(z, terms)))).sum(
        0
    )
    losses = made.expand(target.shape)
    return (target * losses.masked_fill((target == 0) & losses.isinf(), 0)).sum(-1)


def _by_term(z: Tensor, terms: Terms) -> list[tuple[Any, Tensor]]:
    row = SoftRow(z.movedim(1, -1))
    return [(weight, _checked(term, term.rows(row), row.logits.shape)) for weight, term in terms]


def _checked(term: Term, losses: Tensor, shape: torch.Size) -> Tensor:
    """The losses of every label; raise ValueError if they are not one for each label."""
    if losses.shape not in (shape, (*shape[:-1], 1)):
        raise ValueError(
            f"{type(term).__name__}.rows must return a loss for each label of a row where the "
            f"target is class probabilities, of shape {tuple(shape)} or {(*shape[:-1], 1)}, got "
            f"{tuple(losses.shape)}; sum over classes by row.total_others, or pass class indices"
        )
    return losses


def term_losses_by_label(z: Tensor, target: Tensor, terms: Terms) -> Tensor:
    """``sum_k t_k L_k`` of each term: T first."""
    target = target.movedim(1, -1)
    losses = [loss.expand(target.shape) for _, loss in _by_term(z, terms)]
    there = [loss.masked_fill((target == 0) & loss.isinf(), 0) for loss in losses]
    return torch.stack([(target * loss).sum(-1) for loss in there])


def mixture_losses(logits: Tensor, mixture: Mixture) -> Tensor:
    """The scaled loss of every row: the definition, differentiable in everything."""
    losses = logits.new_zeros(mixture.base.shape, dtype=accumulator_dtype(logits.dtype))
    weights = mixture.terms.tensor_weights(like=losses)
    for label, scale in zip(mixture.labels, mixture.scales, strict=True):
        made = reference.row_loss(logits, label, weights, mixture.terms, mixture.ignore_index)
        losses = losses + scale * made.row_losses
    if mixture.distribution is not None:
        assert mixture.distribution_scale is not None
        ignored = mixture.base == mixture.ignore_index
        z = logits.masked_fill(ignored.unsqueeze(1), 0)
        shared = distribution_losses(z, mixture.distribution).masked_fill(ignored, 0)
        losses = losses + mixture.distribution_scale * shared
    return losses


def _of_classes(weight: Tensor, z: Tensor) -> Tensor:
    return weight.view(-1, *(1,) * (z.dim() - 2))


def _product(tensor: Tensor, factor: Tensor | float | None) -> Tensor:
    return tensor if factor is None or (_is_number(factor) and factor == 1) else tensor * factor


def _is_number(factor: Tensor | float) -> bool:
    return not isinstance(factor, Tensor)


def _is_zero(factor: Tensor | float) -> bool:
    return _is_number(factor) and bool(factor == 0)
