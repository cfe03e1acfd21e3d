"""The losses under comparison, all called as ``criterion(logits, target)``."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

import anl_kernels as ak

Criterion = Callable[[Tensor, Tensor], Tensor]
BASELINE = "CE"
EAGER_ANL = "ANL-CE(5,5), eager"
LIBRARY_ANL = "ANL-CE(5,5), library"


def training_losses() -> dict[str, nn.Module]:
    """The four losses that each train one network."""
    return {
        BASELINE: nn.CrossEntropyLoss(),
        "ANL-CE(5,5)": ak.ActiveNegativeLoss(alpha=5.0, beta=5.0),
        "GCE(0.7)": ak.RobustLoss(ak.GCE(q=0.7)),
        "RelativeGCE(0.7)": ak.presets.large_vocabulary(),
    }


def eager_anl(logits: Tensor, target: Tensor) -> Tensor:
    """ANL-CE(5,5) the usual way, one tensor operation after the other.

    Each half takes its own log-softmax and selects the label with a one-hot matrix, as published
    implementations do; this is the cost the library is meant to replace.
    """
    num_classes = logits.shape[1]
    floor = math.log(1e-7)

    log_p = F.log_softmax(logits, dim=1)
    one_hot = F.one_hot(target, num_classes).to(log_p.dtype)
    active = (one_hot * log_p).sum(dim=1) / log_p.sum(dim=1)

    clamped = F.log_softmax(logits, dim=1).clamp(min=floor)
    one_hot = F.one_hot(target, num_classes).to(clamped.dtype)
    label = (one_hot * clamped).sum(dim=1)
    negative = 1 - (floor - label) / (num_classes * floor - clamped.sum(dim=1))
    return (5.0 * active + 5.0 * negative).mean()


def measured_losses() -> dict[str, Criterion]:
    """What the time and memory table compares."""
    trained = training_losses()
    del trained[BASELINE]
    return {
        "F.cross_entropy": F.cross_entropy,
        EAGER_ANL: eager_anl,
        **{f"{name}, library": criterion for name, criterion in trained.items()},
    }
