"""The library, and the roofline it is measured against."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

import anl_kernels as ak
from anl_kernels.terms import REGISTRY, Term
from benchmarks.contenders.base import (
    Criterion,
    contender,
    loss_and_gradient,
    loss_over_gradient,
    register,
)
from benchmarks.contenders.formulas import (
    MIN_PROB,
    MIN_PROB_OF_MANY,
    careful_apl,
    min_prob_at,
    official_anl_by_rows,
)
from benchmarks.environment import ROOT
from benchmarks.inputs import Inputs
from benchmarks.timing import Prepare

PARAMETERS: dict[str, dict[str, float]] = {
    "AGCE": {"a": 6.0, "q": 1.5},
    "AUL": {"a": 6.3, "q": 1.5},
    "AEL": {"a": 5.0},
    "AMSE": {"a": 30.0},
    "EpsilonCE": {"m": 1e5},
    "EpsilonFL": {"m": 1e5},
    "OnlyTopP": {"threshold": 1e-6},
    "OnlyBottomP": {"threshold": 0.1},
    "OnlyTopLogP": {"threshold": 1e-6},
    "OnlyBottomLogP": {"threshold": 0.1},
}
"""Of terms that have no defaults: the papers', for CIFAR-10; thresholds that some labels pass."""
_ANL = {p: ak.ActiveNegativeLoss(min_prob=p).terms for p in (MIN_PROB, MIN_PROB_OF_MANY)}


def anl_terms(num_classes: int) -> ak.Terms:
    """The papers' loss, or the one that many classes need: see ``min_prob_at``."""
    return _ANL[min_prob_at(num_classes)]


_LOSSES = {p: ak.RobustLoss(terms) for p, terms in _ANL.items()}
_INPLACE = {p: ak.RobustLoss(terms, inplace=True) for p, terms in _ANL.items()}


def _at_any_size(losses: dict[float, ak.RobustLoss]) -> Criterion:
    def criterion(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return losses[min_prob_at(logits.shape[1])](logits, target)

    return criterion


anl = _at_any_size(_LOSSES)
anl_inplace = _at_any_size(_INPLACE)
apl: Criterion = ak.ActivePassiveLoss(passive="mae")

_anl: dict[str, Any] = {"backend": "auto", "truth": official_anl_by_rows}


def _module(criterion: Criterion, inputs: Inputs) -> Prepare:
    """Of ``anl`` the module itself, as users call it."""
    return loss_and_gradient(_LOSSES[min_prob_at(inputs.problem.classes)], inputs)


register("ours", "anl_kernels", anl, take=_module, **_anl)
# Its arguments are looked at in every call.
register("ours_function", "anl_kernels, as a function", ak.anl, **_anl)
register("ours_inplace", "anl_kernels, inplace=True", anl_inplace, take=loss_over_gradient, **_anl)
# Inside compiled code it takes its recompute mode.
register("ours_compiled", "anl_kernels under torch.compile", anl, compiled=True, **_anl)
register("ours_apl", "anl_kernels, APL", apl, backend="auto", truth=careful_apl)
# Whatever "auto" takes.
for _backend, _label in {"triton": "anl_kernels, Triton", "cuda": "anl_kernels, CUDA C++"}.items():
    _own = _anl | {"backend": _backend}
    register(_backend, _label, anl, "cuda", **_own)
    register(
        f"{_backend}_inplace", f"{_label}, inplace=True", anl_inplace, "cuda",
        take=loss_over_gradient, **_own,
    )  # fmt: skip


IMPORT = """
import torch
from time import perf_counter
start = perf_counter()
import anl_kernels
print(perf_counter() - start)
"""


@contender("import anl_kernels, after torch")
def import_ours(inputs: Inputs) -> Prepare:
    """What a program waits for before its first call; the step returns the seconds."""
    return lambda i: seconds_of_import


def seconds_of_import() -> float:
    """Of the library, in a process that has imported torch."""
    command = [sys.executable, "-c", IMPORT]
    return float(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


@contender("copy of the logits")
def copy(inputs: Inputs) -> Prepare:
    """The roofline: one read and one write of the logits' size.

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


for _name, _term in term_instances().items():
    _loss = ak.RobustLoss(_term)
    register(_name, repr(_term), _loss, backend="auto", truth=_by_definition(_term))
