"""Heads with rows and labels, and what is computed of them: fused, and with all logits at once."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

import anl_kernels as ak

IGNORE = -100


class Head(NamedTuple):
    """Hidden states, weight, bias or None, labels."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    target: torch.Tensor

    @property
    def parameters(self):
        """What gradients are asked of."""
        return [tensor for tensor in self[:3] if tensor is not None]

    def to(self, dtype):
        """The same numbers, or their roundings."""
        return Head(*(t if t is None else t.detach().to(dtype) for t in self[:3]), self.target)

    def leaves(self):
        """A copy whose tensors require grad."""
        copies = (t if t is None else t.detach().clone().requires_grad_() for t in self[:3])
        return Head(*copies, self.target)

    def with_ignored(self, *rows):
        """The same with the labels of some rows ignored."""
        target = self.target.clone()
        target.view(-1)[list(rows)] = IGNORE
        return self._replace(target=target)


def random_head(
    shape=(11,), hidden=6, classes=9, dtype=torch.float64, device="cpu", bias=True, scale=3.0
):
    """A head of ``shape`` rows, whose logits have a standard deviation of about ``scale``."""
    numbers = {"dtype": torch.float64, "device": device}
    states = torch.randn(*shape, hidden, **numbers)
    weight = scale / math.sqrt(hidden) * torch.randn(classes, hidden, **numbers)
    target = torch.randint(classes, shape, device=device)
    offsets = torch.randn(classes, **numbers) if bias else None
    return Head(states, weight, offsets, target).to(dtype)


def chunks_of(rows, head, dtype=None):
    """``chunk_bytes`` for so many rows in a chunk."""
    itemsize = (dtype or head.hidden.dtype).itemsize
    return {"chunk_bytes": rows * head.weight.shape[0] * itemsize}


def logits_of(hidden, weight, bias, softcap=None):
    """What is not fused."""
    logits = F.linear(hidden, weight, bias)
    return softcap * torch.tanh(logits / softcap) if softcap else logits


def fused_loss(head, terms, **options):
    return ak.linear_robust_loss(head.hidden, head.weight, head.target, terms, head.bias, **options)


def unfused_loss(head, terms, logit_softcap=None, **options):
    logits = logits_of(*head[:3], logit_softcap)
    classes_second = logits.reshape(-1, logits.shape[-1])
    per_row = options.pop("sample_weight", None)
    if per_row is not None:
        options["sample_weight"] = per_row.reshape(-1)
    loss = ak.robust_loss(classes_second, head.target.reshape(-1), terms, **options)
    return loss if loss.dim() == 0 else loss.view(head.target.shape)


def with_gradients(loss_of, head, *args, upstream=None, **options):
    """The loss, and the gradients of hidden, weight and bias."""
    head = head.leaves()
    loss = loss_of(head, *args, **options)
    upstream = torch.ones_like(loss) if upstream is None else upstream
    return [loss.detach(), *torch.autograd.grad(loss, head.parameters, upstream)]


def fused(head, terms, **options):
    """Loss and gradients of the fused head."""
    return with_gradients(fused_loss, head, terms, **options)


def unfused(head, terms, **options):
    """Loss and gradients with all logits at once."""
    return with_gradients(unfused_loss, head, terms, **options)


def assert_like(ours, theirs, tolerance=1e-12):
    for actual, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)
