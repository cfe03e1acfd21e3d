"""Gradients of single rows against what docs/math.md derives, exact and in float64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import anl_kernels as ak
from anl_kernels.terms import Term, Terms

from .losses import auto_scale

CLASSES = (10, 100, 1000, 10_000, 50_000, 128_256)
NAMED: dict[str, Term] = {
    "CE": ak.CE(),
    "NCE": ak.NCE(),
    "NNCE": ak.NNCE(),
    "GCE(0.7)": ak.GCE(q=0.7),
    "MAE": ak.MAE(),
    "DFT": ak.DFT(),
}
RELATIVE_MIN_PROBS = (0.1, 1e-2, 1e-3, 1e-4)
"""min_prob times K."""
PAPER_MIN_PROBS = (1e-7, 1e-8)
BALANCED: dict[str, Terms | Term] = {
    "NCE": ak.NCE(),
    "NNCE": ak.NNCE(),
    "ANL(1,1)": ak.NCE() + ak.NNCE(),
    "RelativeGCE(0.7)": ak.RelativeGCE(q=0.7),
}
NORMALISED = ("NCE", "NNCE", "ANL(1,1)")
BALANCES = (1.0, "row", "batch")
LATE = (0.5, 0.9, 0.99, 0.999)
"""What a network gives the class that it prefers, late in training."""
RESTS = [10 ** (-step / 8) for step in range(1, 41)]
"""Probabilities of the other classes together at which the largest gradient is looked for."""


def expected_at_uniform(name: str, K: int, min_prob: float = 1e-7) -> float:
    """Norm of the gradient at uniform logits: |dL/dz_y| is the factor times (K - 1) / K."""
    factor = {
        "CE": 1.0,
        "NCE": 1 / (K * math.log(K)),
        "NNCE": 1 / (K * (-math.log(min_prob) - math.log(K))),
        "GCE(0.7)": K**-0.7,
        "MAE": 1 / K,
        "DFT": 1 / K,
    }[name]
    return factor * math.sqrt((K - 1) / K)


def norms(
    terms: Term | Terms, logits: Tensor, class_scale: float | str = 1.0, label: int = 0
) -> Tensor:
    """Norm of the gradient of each row's loss."""
    logits = logits.clone().requires_grad_()
    target = torch.full((len(logits),), label)
    options = {"reduction": "sum", "class_scale": class_scale}
    ak.robust_loss(logits, target, terms, **options).backward()
    return logits.grad.norm(dim=1)


def at_uniform(terms: Term, K: int, class_scale: float | str = 1.0) -> float:
    """The norm where all logits are equal."""
    return norms(terms, torch.zeros(1, K, dtype=torch.float64), class_scale).item()


def largest(term: Term, K: int) -> dict[str, float]:
    """The largest norm over the label's probability, all other classes alike.

    Of NNCE it is where the others are about to fall below ``min_prob``, all at once.
    """
    just_above = 1 + 1e-4 / K  # so that the others' sum is next to nothing
    clamp = [just_above * (K - 1) * term.min_prob] if isinstance(term, ak.NNCE) else []
    rests = [rest for rest in [*RESTS, *clamp] if rest < 1 - 1 / K]
    found = {rest: norms(term, peaked(rest, K)).item() for rest in [1 - 1 / K, *rests]}
    worst = max(found, key=found.__getitem__)
    return {"norm": found[worst], "rest": worst}


def peaked(rest: float, K: int) -> Tensor:
    """One row of logits with probability ``rest`` spread evenly over all classes but the first."""
    logits = torch.zeros(1, K, dtype=torch.float64)
    logits[0, 0] = math.log((1 - rest) / rest * (K - 1))
    return logits


def min_probs(K: int) -> list[float]:
    """The papers', and shares of 1/K; all below 1/K."""
    relative = {float(f"{share / K:.6g}") for share in RELATIVE_MIN_PROBS}
    return sorted(relative | set(PAPER_MIN_PROBS))


def gradient_record() -> dict[str, Any]:
    """Measured and derived norms for every K."""
    return {
        "uniform": [
            {
                "num_classes": K,
                "loss": name,
                "measured": at_uniform(term, K),
                "derived": expected_at_uniform(name, K),
                "auto": at_uniform(term, K, auto_scale(K)),
                "largest": largest(term, K),
            }
            for K in CLASSES
            for name, term in NAMED.items()
        ],
        "min_prob": [
            {
                "num_classes": K,
                "min_prob": min_prob,
                "measured": at_uniform(ak.NNCE(min_prob=min_prob), K),
                "derived": expected_at_uniform("NNCE", K, min_prob),
                "auto": at_uniform(ak.NNCE(min_prob=min_prob), K, auto_scale(K)),
                "largest": largest(ak.NNCE(min_prob=min_prob), K),
            }
            for K in CLASSES
            for min_prob in min_probs(K)
        ],
    }


def balance_record() -> list[dict[str, Any]]:
    """Norms of balanced losses at uniform logits, and of rows that prefer the label or another."""
    return [
        {
            "num_classes": K,
            "loss": name,
            "balance": balance,
            "uniform": at_uniform(terms, K, balance),
            "right": norms(terms, rows, balance, label=0).tolist(),
            "wrong": norms(terms, rows, balance, label=1).tolist(),
        }
        for K in CLASSES
        for rows in [torch.cat([peaked(1 - top, K) for top in LATE])]
        for name, terms in BALANCED.items()
        for balance in (BALANCES if name in NORMALISED else BALANCES[:1])
    ]
