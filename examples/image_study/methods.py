"""The losses under comparison, with the papers' weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

import anl_kernels as ak

from .recipes import WEIGHT_DECAY

BASELINE = "CE"
PLAIN = {BASELINE: ak.CE(), "FL": ak.FL(gamma=0.5)}
PRESETS = {
    "GCE": "gce",
    "SCE": "sce",
    "NCE+MAE": "nce_mae",
    "NCE+RCE": "nce_rce",
    "NCE+AGCE": "nce_agce",
    "ANL-CE": "anl_ce",
    "ANL-FL": "anl_fl",
    "ANL-CE-ER": "anl_ce_er",
}
EQUAL, AS_LARGE = BALANCED = ("ANL-CE(1,1) batch", "ANL-CE batch, as large")
"""With ``class_scale="batch"``: weights 1, and weights that leave the paper's size to the gradients
at uniform logits, so that balance is all that differs."""
METHODS = (*PLAIN, *PRESETS, *BALANCED)


@dataclass(frozen=True)
class Method:
    """A loss, called as ``criterion(logits, labels)``, and what goes with it."""

    criterion: nn.Module
    l1: float
    weight_decay: float


def make(name: str, weights: str) -> Method:
    """A loss with the weights that its paper has for the data set ``weights``."""
    if name in PLAIN:
        return Method(ak.RobustLoss(PLAIN[name]), 0.0, WEIGHT_DECAY[weights])
    if name in BALANCED:
        published = ak.presets.get("anl_ce", weights)
        terms = ak.NCE() + ak.NNCE() if name == EQUAL else as_large(published)
        return Method(ak.RobustLoss(terms, class_scale="batch"), published.l1 or 0.0, 0.0)
    preset = PRESETS[name]
    if preset == "anl_ce_er" and weights == "mnist":
        weights = "cifar10"  # its paper has no other data set of ten classes
    l1 = ak.presets.get(preset, weights).l1 or 0.0
    criterion = getattr(ak.presets, preset)(weights)
    return Method(criterion, l1, 0.0 if l1 else WEIGHT_DECAY[weights])


def as_large(published: ak.presets.Preset) -> ak.Terms:
    """ANL-CE with weights that give balanced terms the gradients of the published ones.

    At uniform logits of the data set's number of classes: there NCE is divided by ``K log K``, NNCE
    by ``K (A - log K)`` with ``A = -log(min_prob)``.
    """
    K, (alpha, beta) = published.num_classes, published.terms.factors
    active, negative = ak.NCE(), ak.NNCE()
    bound = -math.log(negative.min_prob)
    return alpha / (K * math.log(K)) * active + beta / (K * (bound - math.log(K))) * negative
