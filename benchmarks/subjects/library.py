"""The library, and the roof it is measured against."""

from __future__ import annotations

from functools import partial

import torch

import anl_kernels as ak
from anl_kernels.terms import REGISTRY, Term
from benchmarks.inputs import Inputs
from benchmarks.peers import (
    MIN_PROB,
    MIN_PROB_OF_MANY,
    careful_apl,
    min_prob_at,
    official_anl_by_rows,
)
from benchmarks.subjects.base import (
    SUBJECTS,
    Criterion,
    Subject,
    compiled_alone,
    loss_and_gradient,
    loss_over_gradient,
    on_backend,
    subject,
)
from benchmarks.timing import Prepare

PARAMETERS: dict[str, dict[str, float]] = {
    "AGCE": {"a": 6.0, "q": 1.5},
    "AUL": {"a": 6.3, "q": 1.5},
    "AEL": {"a": 5.0},
    "AMSE": {"a": 30.0},
}
"""Of terms that have no defaults: the papers', for CIFAR-10."""
_ANL = {p: ak.ActiveNegativeLoss(min_prob=p).terms for p in (MIN_PROB, MIN_PROB_OF_MANY)}


def anl_terms(num_classes: int) -> ak.Terms:
    """The papers' loss, or the one that many classes need: see ``min_prob_at``."""
    return _ANL[min_prob_at(num_classes)]


def _anl_at_any_size(inplace: bool) -> Criterion:
    losses = {p: ak.RobustLoss(terms, inplace=inplace) for p, terms in _ANL.items()}

    def criterion(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return losses[min_prob_at(logits.shape[1])](logits, target)

    return criterion


anl = _anl_at_any_size(inplace=False)
anl_inplace = _anl_at_any_size(inplace=True)
apl: Criterion = ak.ActivePassiveLoss(passive="mae")

_anl = {"criterion": anl, "truth": official_anl_by_rows}
_anl_inplace = {"criterion": anl_inplace, "truth": official_anl_by_rows}


@subject("anl_kernels", backend="auto", **_anl)
def ours(inputs: Inputs) -> Prepare:
    """The library, one pass."""
    return loss_and_gradient(anl, inputs)


@subject("anl_kernels, as a function", backend="auto", criterion=ak.anl, truth=official_anl_by_rows)
def ours_function(inputs: Inputs) -> Prepare:
    """The library by its function, whose arguments are looked at in every call."""
    return loss_and_gradient(ak.anl, inputs)


@subject("anl_kernels, inplace=True", backend="auto", **_anl_inplace)
def ours_inplace(inputs: Inputs) -> Prepare:
    """The library with the gradient in the logits' memory: nothing is allocated."""
    return loss_over_gradient(anl_inplace, inputs)


def _anl_compiled(*tensors: torch.Tensor) -> torch.Tensor:
    return compiled_alone(anl)(*tensors)


@subject(
    "anl_kernels under torch.compile",
    backend="auto",
    criterion=_anl_compiled,
    truth=official_anl_by_rows,
)
def ours_compiled(inputs: Inputs) -> Prepare:
    """The library inside compiled code, where it takes its recompute form."""
    return loss_and_gradient(compiled_alone(anl), inputs)


@subject("anl_kernels, Triton", "cuda", backend="triton", **_anl)
def triton(inputs: Inputs) -> Prepare:
    """The library's Triton kernels, whatever "auto" takes."""
    return on_backend("triton", ours(inputs))


@subject("anl_kernels, Triton, inplace=True", "cuda", backend="triton", **_anl_inplace)
def triton_inplace(inputs: Inputs) -> Prepare:
    """The library's Triton kernels in place."""
    return on_backend("triton", ours_inplace(inputs))


@subject("anl_kernels, CUDA C++", "cuda", backend="cuda", **_anl)
def cuda(inputs: Inputs) -> Prepare:
    """The library's CUDA C++ kernels, whatever "auto" takes."""
    return on_backend("cuda", ours(inputs))


@subject("anl_kernels, CUDA C++, inplace=True", "cuda", backend="cuda", **_anl_inplace)
def cuda_inplace(inputs: Inputs) -> Prepare:
    """The library's CUDA C++ kernels in place."""
    return on_backend("cuda", ours_inplace(inputs))


@subject("anl_kernels, APL", backend="auto", criterion=apl, truth=careful_apl)
def ours_apl(inputs: Inputs) -> Prepare:
    """Active Passive Loss, NCE + MAE."""
    return loss_and_gradient(apl, inputs)


@subject("copy of the logits")
def copy(inputs: Inputs) -> Prepare:
    """The roof: one read and one write of the logits' size.

    The write goes to the same memory each time, as a gradient's to what the allocator hands out
    again: if it is small, it is in a cache.
    """
    sources = [logits.detach() for logits in inputs.logits]
    return lambda i: lambda: inputs.spare[0].copy_(sources[i])


def term_instances() -> dict[str, Term]:
    """One instance of every registered term."""
    return {name: term(**PARAMETERS.get(name, {})) for name, term in REGISTRY.items()}


def _by_definition(term: Term) -> Criterion:
    """The term as the reference computes it."""

    def criterion(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with ak.use_backend("reference"):
            return ak.robust_loss(logits, target, term)  # type: ignore[return-value]

    return criterion


def _register(name: str, term: Term) -> None:
    criterion: Criterion = ak.RobustLoss(term)
    SUBJECTS[name] = Subject(
        repr(term),
        partial(loss_and_gradient, criterion),
        backend="auto",
        criterion=criterion,
        truth=_by_definition(term),
    )


for _name, _term in term_instances().items():
    _register(_name, _term)
