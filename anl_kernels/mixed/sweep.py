"""A mixture over a chunk of rows, by the kernels of a backend: losses, and one gradient.

The numbers that the recompute form keeps of a row determine its gradient linearly (docs/math.md),
so those of several labels are merged, and one sweep writes the gradient of all. At the labels
themselves, of which the sweep knows one, it is put in afterwards.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from anl_kernels.interface import Backend, RowRequest, accumulator_dtype
from anl_kernels.mixed.mixture import Distribution, Mixture, losses_by_label
from anl_kernels.terms import CE, as_terms

_CE = as_terms(CE())


def sweep(backend: Backend, z: Tensor, mixture: Mixture, grad: Tensor | None) -> Tensor:
    """The scaled loss of every row; write the scaled gradient to ``grad``, which may be ``z``.

    ``z`` is (n, K) or (n, K, d1, ...).
    """
    shares = mixture.distribution
    if shares is None or shares.others is None:
        return _by_kernels(backend, z, mixture, grad)
    losses, by_formula = _by_formula(z, mixture, grad is not None)
    if shares.has_cross_entropy:
        losses += _by_kernels(backend, z, mixture, grad)
        if grad is not None:
            grad.add_(by_formula)
    elif grad is not None:
        grad.copy_(by_formula)
    return losses


def _by_formula(z: Tensor, mixture: Mixture, wanted: bool) -> tuple[Tensor, Tensor]:
    """The terms that have no kernel for a distribution: losses, and their gradient if wanted."""
    shares, scale = mixture.distribution, mixture.distribution_scale
    assert shares is not None
    assert shares.others is not None
    assert scale is not None
    with torch.set_grad_enabled(wanted):
        x = z.detach().to(accumulator_dtype(z.dtype)).requires_grad_(wanted)
        losses = scale * losses_by_label(x, shares, shares.others)
        gradient = torch.autograd.grad(losses.sum(), x)[0] if wanted else x
    return losses.detach(), gradient


class _Part(NamedTuple):
    """One label of each of R rows, and what its loss is multiplied with."""

    label: Tensor
    scale: Tensor
    counted: Tensor
    saved: Tensor
    """(R, NUM_SAVED + T); 0 in rows that do not count."""


def _by_kernels(backend: Backend, z: Tensor, mixture: Mixture, grad: Tensor | None) -> Tensor:
    terms = mixture.terms if mixture.labels else _CE
    one = z.new_ones((), dtype=accumulator_dtype(z.dtype))
    request = RowRequest.of(terms, mixture.ignore_index, "row_losses", "saved", reduce=False)
    rows = mixture.base.shape
    losses = one.new_zeros(rows)
    weights = terms.tensor_weights(like=one)
    parts = []
    # Rows without labels are read for their softmax, with any label.
    scales = mixture.scales or (one.new_zeros(()),)
    for label, scale in zip(mixture.labels or (mixture.base,), scales, strict=True):
        made = backend.row_loss(z, label, one, weights, request)
        if mixture.labels:  # else this is the loss of any label, which may be infinite
            losses += scale * made.row_losses.view(rows)
        counted = (label != mixture.ignore_index).reshape(-1)
        # What is kept of a row that does not count is nothing that was computed.
        saved = made.saved.masked_fill(~counted.unsqueeze(-1), 0)
        parts.append(_Part(label, scale.expand(rows).reshape(-1), counted, saved))
    softmax = parts[0].saved[:, :2]
    if len(parts) > 1:
        softmax = torch.where(parts[0].counted.unsqueeze(-1), softmax, parts[1].saved[:, :2])
    shared = None
    if mixture.distribution is not None:
        shared = _Shared(z, mixture, mixture.distribution, softmax, scratch=grad)
        losses += shared.losses
    if grad is None:
        return losses
    slopes = torch.stack([part.scale.unsqueeze(-1) * part.saved[:, 2:] for part in parts]).sum(0)
    if shared is not None:
        p_base = _probs_at(z, mixture.base.unsqueeze(1), softmax).squeeze(-1)
        slopes[:, 0] += shared.pull * p_base
        slopes[:, 1] -= shared.pull
    saved = torch.cat([softmax, slopes], -1)
    at_labels = None
    if len(parts) > 1:
        at_labels = _at_labels(backend, z, parts, softmax, shared, request)
    backend.row_grad_into(grad, z, mixture.base, one, saved, request)
    if at_labels is not None:
        places, values = at_labels
        grad.scatter_(1, places, _as_columns(values, rows).to(grad.dtype))
    if shared is not None:
        grad.addcmul_(shared.shares, shared.scale.unsqueeze(1), value=-1)
    return losses


class _Shared:
    """The fused part of a distribution: ``T lse - sum_k t_k z_k``.

    What is in ``scratch``, like the logits, may be lost.
    """

    def __init__(
        self,
        z: Tensor,
        mixture: Mixture,
        distribution: Distribution,
        softmax: Tensor,
        scratch: Tensor | None,
    ) -> None:
        assert mixture.distribution_scale is not None
        rows, acc = mixture.base.shape, softmax.dtype
        ignored = mixture.base == mixture.ignore_index
        self.scale = mixture.distribution_scale.expand(rows).masked_fill(ignored, 0)
        # A GPU would have to be waited for to know.
        all_there = z.device.type == "cpu" and z.numel() > 0 and bool(z.amin() > -torch.inf)
        self.shares = distribution.shares(z.to(acc), all_there)
        total = self.shares.sum(1).expand(rows)
        below = scratch if _is_free(scratch, z, acc) else torch.empty_like(z, dtype=acc)
        assert below is not None
        torch.sub(z, _as_columns(softmax[:, :1], rows), out=below)
        dots = self._dots(below, all_there) - total * softmax[:, 1].view(rows)
        self.losses = (-dots * self.scale).masked_fill(ignored, 0)
        self.pull = (self.scale * total).reshape(-1)
        """(R,): what a probability is multiplied with in the gradient."""

    def _dots(self, below: Tensor, all_there: bool) -> Tensor:
        if all_there:
            return torch.linalg.vecdot(below, self.shares, dim=1)
        # A class that is not there: 0 times its share of 0, and else as good as infinite.
        lowest = torch.finfo(below.dtype).min
        dots = torch.linalg.vecdot(below.clamp_(min=lowest), self.shares, dim=1)
        return dots.masked_fill(dots < lowest * 1e-9, -torch.inf)


def _is_free(scratch: Tensor | None, z: Tensor, dtype: torch.dtype) -> bool:
    return scratch is not None and scratch.dtype == dtype and scratch.data_ptr() != z.data_ptr()


def _at_labels(
    backend: Backend,
    z: Tensor,
    parts: list[_Part],
    softmax: Tensor,
    shared: _Shared | None,
    request: RowRequest,
) -> tuple[Tensor, Tensor]:
    """Where the two labels are, and the gradient there, (R, 2)."""
    first, second = parts
    rows = first.label.shape
    # A label that does not count is where the other is.
    y = torch.where(first.counted.view(rows), first.label, second.label).long()
    other = torch.where(second.counted.view(rows), second.label.long(), y)
    places = torch.stack([y, other], 1).clamp_(0, z.shape[1] - 1)
    columns = _as_rows(z.gather(1, places)).contiguous()
    same = (y == other).reshape(-1)
    values = columns.new_zeros(columns.shape, dtype=softmax.dtype)
    for i, part in enumerate(parts):
        made = torch.empty_like(values)
        label = torch.full_like(part.label.reshape(-1), i)
        kept = request._replace(ignore_index=-1)
        backend.row_grad_into(made, columns.to(made.dtype), label, part.scale, part.saved, kept)
        own = part.scale * part.saved[:, 2]
        made[:, i] = own
        made[:, 1 - i] = torch.where(same, own, made[:, 1 - i])
        values += made.masked_fill_(~part.counted.unsqueeze(-1), 0)
    if shared is not None:
        values += shared.pull.unsqueeze(-1) * _probs_at(z, places, softmax)
    counted = (first.counted | second.counted).unsqueeze(-1)
    return places, values.masked_fill_(~counted, 0)


def _probs_at(z: Tensor, places: Tensor, softmax: Tensor) -> Tensor:
    """(R, M): probabilities of M classes of every row."""
    at = _as_rows(z.gather(1, places.long().clamp(0, z.shape[1] - 1))).to(softmax.dtype)
    return ((at - softmax[:, :1]) - softmax[:, 1:]).exp()


def _as_rows(columns: Tensor) -> Tensor:
    """(n, M, d1, ...) as (R, M)."""
    return columns.movedim(1, -1).reshape(-1, columns.shape[1])


def _as_columns(values: Tensor, rows: torch.Size) -> Tensor:
    """(R, M) as (n, M, d1, ...)."""
    return values.view(*rows, values.shape[-1]).movedim(-1, 1)
