"""ANL-CE and APL as others write them: what the library is compared with, sharing nothing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA = BETA = 5.0
MIN_PROB = 1e-7
"""The papers' ..."""
MIN_PROB_OF_MANY = 1e-9
"""... and where 1 / K is not above it, so that they would clamp all classes of uniform logits."""


def min_prob_at(num_classes: int) -> float:
    """NNCE's smallest probability."""
    return MIN_PROB if num_classes * MIN_PROB < 1 else MIN_PROB_OF_MANY


def official_anl(logits: Tensor, target: Tensor) -> Tensor:
    """The way of the papers' code: two softmaxes, and int64 one-hot matrices to pick the label."""
    return ALPHA * _official_nce(logits, target) + BETA * _official_nnce(logits, target)


def official_apl(logits: Tensor, target: Tensor) -> Tensor:
    """NCE + MAE, the same way."""
    return _official_nce(logits, target) + _official_mae(logits, target)


def official_anl_by_rows(logits: Tensor, target: Tensor) -> Tensor:
    """For classes in dimension 1 of more than two; theirs are for (N, K), so one has to permute."""
    return official_anl(*_as_rows(logits, target))


def careful_anl(logits: Tensor, target: Tensor) -> Tensor:
    """As well as it can be written: one log-softmax in float32 or better, no one-hot."""
    log_probs, label = _log_softmax(logits), target.unsqueeze(1)
    nce = log_probs.gather(1, label) / log_probs.sum(dim=1, keepdim=True)
    lowest = math.log(min_prob_at(logits.shape[1]))
    shifted = log_probs.clamp(min=lowest) - lowest
    nnce = 1 - shifted.gather(1, label) / shifted.sum(dim=1, keepdim=True)
    return (ALPHA * nce + BETA * nnce).mean()


def careful_apl(logits: Tensor, target: Tensor) -> Tensor:
    """NCE + MAE, the same way."""
    log_probs, label = _log_softmax(logits), target.unsqueeze(1)
    chosen = log_probs.gather(1, label)
    return (chosen / log_probs.sum(dim=1, keepdim=True) + 1 - chosen.exp()).mean()


def _official_nce(logits: Tensor, target: Tensor) -> Tensor:
    log_probs = F.log_softmax(logits, dim=1)
    one_hot = F.one_hot(target, logits.shape[1])
    losses = (one_hot * log_probs).sum(dim=1) / log_probs.sum(dim=1)
    return losses.mean()


def _official_nnce(logits: Tensor, target: Tensor) -> Tensor:
    min_prob = min_prob_at(logits.shape[1])
    probs = F.softmax(logits, dim=1).clamp(min=min_prob, max=1.0)
    shifted = probs.log() - math.log(min_prob)
    one_hot = F.one_hot(target, logits.shape[1])
    losses = 1 - (one_hot * shifted).sum(dim=1) / shifted.sum(dim=1)
    return losses.mean()


def _official_mae(logits: Tensor, target: Tensor) -> Tensor:
    probs = F.softmax(logits, dim=1).clamp(min=MIN_PROB, max=1.0)
    one_hot = F.one_hot(target, logits.shape[1]).float()
    return (1 - (one_hot * probs).sum(dim=1)).mean()


def _as_rows(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return logits.movedim(1, -1).reshape(-1, logits.shape[1]), target.reshape(-1)


def _log_softmax(logits: Tensor) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.log_softmax(logits, dim=1, dtype=dtype)
