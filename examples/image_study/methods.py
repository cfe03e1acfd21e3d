"""The losses under comparison, with the papers' weights."""

from __future__ import annotations

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
METHODS = (*PLAIN, *PRESETS)


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
    preset = PRESETS[name]
    if preset == "anl_ce_er" and weights == "mnist":
        weights = "cifar10"  # its paper has no other data set of ten classes
    l1 = ak.presets.get(preset, weights).l1 or 0.0
    criterion = getattr(ak.presets, preset)(weights)
    return Method(criterion, l1, 0.0 if l1 else WEIGHT_DECAY[weights])
