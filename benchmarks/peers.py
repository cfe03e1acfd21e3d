"""ANL-CE as others write it: what the library is compared with, sharing nothing with it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA = BETA = 5.0
MIN_PROB = 1e-7


def official_anl(logits: Tensor, target: Tensor) -> Tensor:
    """The way of the papers' code: two softmaxes, and int64 one-hot matrices to pick the label."""
    return ALPHA * _official_nce(logits, target) + BETA * _official_nnce(logits, target)


def _official_nce(logits: Tensor, target: Tensor) -> Tensor:
    log_probs = F.log_softmax(logits, dim=1)
    one_hot = F.one_hot(target, logits.shape[1])
    losses = (one_hot * log_probs).sum(dim=1) / log_probs.sum(dim=1)
    return losses.mean()


def _official_nnce(logits: Tensor, target: Tensor) -> Tensor:
    probs = F.softmax(logits, dim=1).clamp(min=MIN_PROB, max=1.0)
    shifted = probs.log() - math.log(MIN_PROB)
    one_hot = F.one_hot(target, logits.shape[1])
    losses = 1 - (one_hot * shifted).sum(dim=1) / shifted.sum(dim=1)
    return losses.mean()


def careful_anl(logits: Tensor, target: Tensor) -> Tensor:
    """As well as it can be written for a compiler: one log-softmax in float32, no one-hot."""
    log_probs = F.log_softmax(logits, dim=1, dtype=torch.float32)
    label = target.unsqueeze(1)
    nce = log_probs.gather(1, label) / log_probs.sum(dim=1, keepdim=True)
    shifted = log_probs.clamp(min=math.log(MIN_PROB)) - math.log(MIN_PROB)
    nnce = 1 - shifted.gather(1, label) / shifted.sum(dim=1, keepdim=True)
    return (ALPHA * nce + BETA * nnce).mean()
