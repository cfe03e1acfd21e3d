"""Runs a checked call of a mixture: choice of backend and form, outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from anl_kernels.backends.choice import REFERENCE, choose_backend
from anl_kernels.checks import class_dim
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.interface import accumulator_dtype
from anl_kernels.mixed.autograd import MixtureFunction, MixtureSpec
from anl_kernels.mixed.mixture import Mixture, distribution_losses, term_losses_by_label
from anl_kernels.mixed.prepare import MixedFactors
from anl_kernels.rows.loss import Aux, row_loss
from anl_kernels.terms import CE, as_terms
from anl_kernels.tracing import transforming, watched

_CE = as_terms(CE())
_FEW, _FEW_SHARES = 1 << 20, 1 << 15
"""Logits that make a call on a CPU small: of labels, and of a distribution."""
_SHORT = 1024
"""Classes of a row that is short for two labels."""

_OF_COUNTED_ROWS = ("denominators", "entropy")
_OF_ROWS = ("lse", "argmax", "probs", *_OF_COUNTED_ROWS)
"""Auxiliary outputs in which labels have no part, but for an ignored one."""


def run(
    logits: Tensor,
    factors: MixedFactors,
    *,
    reduce: bool,
    inplace: bool = False,
    aux: tuple[str, ...] = (),
    shards: ClassShards | None = None,
) -> tuple[Tensor, Aux]:
    """The loss of (K,), (N, K) or (N, K, d1, ...) logits, and what was asked for beside it."""
    mixture = factors.mixture
    # First, since the gradient may take the place of the logits.
    made = _aux(logits.detach(), factors, aux, shards) if aux else Aux()
    if _can_be_swept(logits, mixture, shards):
        return _swept(logits, mixture, reduce, inplace), made
    return _apart(logits, mixture, reduce, shards), made


def _can_be_swept(logits: Tensor, mixture: Mixture, shards: ClassShards | None) -> bool:
    """Whether the Function serves: kernels, whole rows, eager code, gradients of logits only."""
    if shards is not None or transforming() or watched(logits):
        return False
    if logits.device.type == "cpu" and _is_small(logits, mixture):
        return False
    grad_mode = torch.is_grad_enabled()
    if grad_mode and any(tensor.requires_grad for tensor in mixture.factors):
        return False
    return _backend(logits, mixture) != REFERENCE


def _is_small(logits: Tensor, mixture: Mixture) -> bool:
    """Whether a call for each label, or PyTorch's operators, take less time than the sweeps.

    Labels cost the sweeps as many small operators a row, whose rows had better be long.
    """
    if mixture.distribution is None:
        return logits.numel() < _FEW or logits.shape[class_dim(logits)] < _SHORT
    return logits.numel() < _FEW_SHARES


def _backend(logits: Tensor, mixture: Mixture) -> str:
    terms = mixture.terms if mixture.labels else _CE
    return choose_backend(logits, terms)


def _swept(logits: Tensor, mixture: Mixture, reduce: bool, inplace: bool) -> Tensor:
    rows = mixture.base.shape
    flat, mixture = _flat(logits, mixture)
    needs_grad = torch.is_grad_enabled() and logits.requires_grad
    one_pass = needs_grad and reduce and logits.dtype in (torch.float32, torch.bfloat16)
    spec = MixtureSpec(_backend(logits, mixture), reduce, one_pass, inplace)
    loss = MixtureFunction.apply(flat, mixture, spec)
    return loss if reduce else loss.view(rows)


def _flat(logits: Tensor, mixture: Mixture) -> tuple[Tensor, Mixture]:
    """As (N, K) or (N, K, M) logits, without a copy wherever strides allow."""
    if logits.dim() == 1:
        return logits.unsqueeze(0), mixture.select(_row, _row)
    if logits.dim() <= 3:
        return logits, mixture
    return logits.flatten(2), mixture.select(lambda t: t.flatten(1), lambda t: t.flatten(2))


def _row(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(0)


def _apart(logits: Tensor, mixture: Mixture, reduce: bool, shards: ClassShards | None) -> Tensor:
    """A loss for each label and for the distribution, added: what any transform sees through."""
    parts = []
    for label, scale in zip(mixture.labels, mixture.scales, strict=True):
        options = {"ignore_index": mixture.ignore_index, "reduce": reduce, "shards": shards}
        parts.append(row_loss(logits, label, scale, mixture.terms, **options)[0])  # type: ignore[arg-type]
    if mixture.distribution is not None:
        parts.append(loss_of_distribution(logits, mixture, reduce))
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def loss_of_distribution(logits: Tensor, mixture: Mixture, reduce: bool) -> Tensor:
    """The part of a mixture's loss that its distribution has, by PyTorch's operators."""
    dim, distribution = class_dim(logits), mixture.distribution
    assert distribution is not None
    ignored = mixture.base == mixture.ignore_index
    # Whatever stands in an ignored row, its gradient is 0, not 0 * NaN.
    z = logits.masked_fill(ignored.unsqueeze(dim), 0)
    if dim == 0:
        z = z.unsqueeze(0)
        if distribution.target is not None:
            distribution = distribution._replace(target=distribution.target.unsqueeze(0))
    losses = distribution_losses(z, distribution).view(ignored.shape).masked_fill(ignored, 0)
    assert mixture.distribution_scale is not None
    losses = losses * mixture.distribution_scale
    return losses.sum() if reduce else losses


def _aux(
    logits: Tensor, factors: MixedFactors, names: tuple[str, ...], shards: ClassShards | None
) -> Aux:
    """Auxiliary outputs, in passes of their own."""
    mixture = factors.mixture
    if not mixture.labels:
        return _aux_of_distribution(logits, factors, names)
    made = []
    for label in mixture.labels:
        with torch.no_grad():
            _, aux = row_loss(
                logits,
                label,
                logits.new_ones((), dtype=accumulator_dtype(logits.dtype)),
                factors.terms,
                ignore_index=mixture.ignore_index,
                reduce=False,
                aux=names,
                shards=shards,
            )
        made.append(aux)
    return weighed_aux(made, factors.shares, names)


@torch.no_grad()
def weighed_aux(made: list[Aux], shares: tuple[Tensor | float, ...], names: tuple[str, ...]) -> Aux:
    """The auxiliary outputs of several labels, weighed with their shares."""

    def of(name: str) -> Tensor:
        values = [getattr(one, name) for one in made]
        if name in _OF_COUNTED_ROWS:  # 0 where one label is ignored
            return torch.stack(values).amax(0)
        if name in _OF_ROWS or len(values) == 1:
            return values[0]
        first, second = shares
        return first * values[0] + second * values[1]

    return Aux(**{name: of(name) for name in names})


@torch.no_grad()
def _aux_of_distribution(logits: Tensor, factors: MixedFactors, names: tuple[str, ...]) -> Aux:
    mixture, dim = factors.mixture, class_dim(logits)
    one = logits.new_ones((), dtype=accumulator_dtype(logits.dtype))
    of_rows = tuple(name for name in names if name in _OF_ROWS)
    options = {"ignore_index": mixture.ignore_index, "reduce": False, "aux": of_rows}
    terms = factors.terms if "denominators" in names else _CE
    _, aux = row_loss(logits, mixture.base, one, terms, **options)  # type: ignore[arg-type]
    made = {name: getattr(aux, name) for name in of_rows}
    assert mixture.distribution is not None
    assert mixture.distribution.target is not None
    z, target = logits.to(one.dtype), mixture.distribution.target.to(one.dtype)
    if "p_y" in names:
        made["p_y"] = (target * z.softmax(dim)).sum(dim)
    if "log_p_y" in names:
        log_probs = z.log_softmax(dim).masked_fill(target == 0, 0)
        made["log_p_y"] = (target * log_probs).sum(dim)
    if "term_losses" in names:
        z, target = (z, target) if dim else (z.unsqueeze(0), target.unsqueeze(0))
        losses = term_losses_by_label(z, target, factors.terms)
        made["term_losses"] = losses if dim else losses.squeeze(-1)
    return Aux(**made)
