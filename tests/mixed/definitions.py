"""What losses of several labels are, by one call for each label on the reference backend."""

import torch

import anl_kernels as ak


def rows_of(logits, target, terms, weight=None, ignore_index=-100):
    """The loss of every row, with its class weight, by the loss of each of its labels."""
    with ak.use_backend("reference"):
        return ak.robust_loss(
            logits, target, terms, weight=weight, ignore_index=ignore_index, reduction="none"
        )


def by_each_label(logits, shares, terms, weight=None):
    """``sum_k t_k w_k L_k`` of every row."""
    dim = 1 if logits.dim() > 1 else 0
    total = 0
    for k in range(logits.shape[dim]):
        share = shares.select(dim, k)
        label = torch.full_like(share, k, dtype=torch.int64)
        share = share if weight is None else share * weight[k]
        loss = rows_of(logits, label, terms)
        total = total + share * loss.masked_fill(share == 0, 0)
    return total


def by_two_labels(logits, target, target_b, lam, terms, reduction="mean", weight=None):
    """The reduced loss of two labels a row."""
    share = torch.as_tensor(lam, dtype=logits.dtype, device=logits.device)
    share = share.view(-1, *(1,) * (target.dim() - 1)) if share.dim() == 1 else share
    losses, divisor = 0, 0
    for labels, part in ((target, share), (target_b, 1 - share)):
        losses = losses + part * rows_of(logits, labels, terms, weight)
        counted = (labels != -100).to(logits.dtype)
        if weight is not None:
            counted = counted * weight[labels.clamp(min=0)]
        divisor = divisor + (part * counted).sum()
    if reduction == "none":
        return losses
    return losses.sum() / (divisor if reduction == "mean" else 1)


def gradient(function, logits):
    """The value and gradient of a function's sum."""
    logits = logits.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = function(logits)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]
