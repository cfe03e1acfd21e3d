"""Losses of batches that come in parts: each part's sum over the number of items of all parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anl_kernels.checks import check_label_dtype
from anl_kernels.integrations.shift import Shift, ask_for_shift
from anl_kernels.interface import accumulator_dtype
from anl_kernels.losses import Criterion, RobustLoss
from anl_kernels.rows.prepare import balance_of
from anl_kernels.terms import Term, Terms


class ItemLoss:
    """A criterion's mean, or its sum over a number of items that the caller counted.

    Args:
        make: gives the criterion for a ``reduction`` and other keywords.
        options: those keywords; not ``reduction`` and ``return_aux``.

    Raises:
        TypeError: an option is one that the caller decides on, or unknown, a weight of the terms
            is learned, or a running mean would be kept where no checkpoint has it.
    """

    def __init__(self, make: Callable[..., Criterion], options: Mapping[str, Any]) -> None:
        for name in ("reduction", "return_aux"):
            if name in options:
                raise TypeError(
                    f"{name} is no option here: the loss is one number, the sum over the tokens "
                    f"divided by num_items_in_batch, or the mean where that is not given"
                )
        self.mean = make(reduction="mean", **options)
        self.total = make(reduction="sum", **options)
        if any(tensor is not None and tensor.requires_grad for tensor in self.mean.terms.tensors):
            raise TypeError(
                "terms must have no weights that are learned here, where no optimiser would be "
                "given them; make ak.RobustLoss or ak.LinearRobustLoss with them a module of the "
                "model, which registers them, and call it in the model's forward"
            )
        balance = balance_of(options.get("class_scale", 1.0))
        if balance is not None and balance.over == "running" and balance.running is None:
            raise TypeError(
                "class_scale='running' keeps a mean, which no module of the model would save here; "
                "pass class_scale='batch' or 'row', or ak.Balance('running', running=tensor) with "
                "a tensor on the device of the logits that your checkpoints hold"
            )
        self.ignore_index: int = options.get("ignore_index", -100)

    def __call__(self, rows: Tensor, target: Tensor, num_items: Tensor | int | None) -> Tensor:
        """The loss of rows, logits or hidden states (N, ...), with labels (N,)."""
        criterion = self.mean if num_items is None else self.total
        if criterion.weight is not None and criterion.weight.device != rows.device:
            criterion.weight = criterion.weight.to(rows.device)  # no module moves it with the model
        if num_items is None:
            return criterion(rows, target)
        return criterion(rows, target, _share(num_items, rows).expand(target.shape))


class LogitsLoss:
    """The loss of logits (..., K) and labels (...)."""

    def __init__(self, terms: Term | Terms, options: Mapping[str, Any]) -> None:
        self.loss = ItemLoss(partial(RobustLoss, terms), options)

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor | None,
        num_items: Tensor | int | None = None,
        shifted: Tensor | None = None,
        *,
        shift: Shift,
    ) -> Tensor:
        """The loss, with ``shift`` of the next position's labels; ``shifted`` have moved already.

        Raises:
            ValueError: shift is "auto", which the caller has not decided, and must be known.
        """
        target = self._target(logits, labels, shift) if shifted is None else shifted
        target = target.to(logits.device)
        return self.loss(logits.reshape(-1, logits.shape[-1]), target.reshape(-1), num_items)

    def _target(self, logits: Tensor, labels: Tensor | None, shift: Shift) -> Tensor:
        if labels is None:
            raise TypeError("labels must be a tensor of class indices, got None")
        if labels.shape != logits.shape[:-1]:
            raise ValueError(
                f"labels must have shape {tuple(logits.shape[:-1])} for logits of shape "
                f"{tuple(logits.shape)} (classes last), got {tuple(labels.shape)}"
            )
        if shift == "auto":
            raise ask_for_shift("logits and labels alone do not tell")
        if not shift:
            return labels
        if labels.dim() < 2:
            raise ValueError(
                f"labels must have shape (batch, positions) with shift=True, which is for causal "
                f"language models, got {tuple(labels.shape)}; pass shift=False for a classifier"
            )
        return next_labels(labels, self.loss.ignore_index)


def next_labels(labels: Tensor, ignore_index: int) -> Tensor:
    """The label of the next position at each, ``ignore_index`` at the last: the logits stay whole.

    Shape (..., L) as the labels.
    """
    check_label_dtype(labels, "labels")
    # int32 may not hold ignore_index, and F.pad takes it as a double.
    nothing = labels.new_full((*labels.shape[:-1], 1), ignore_index, dtype=torch.int64)
    return torch.cat([labels[..., 1:].long(), nothing], -1)


def _share(num_items: Tensor | int, rows: Tensor) -> Tensor:
    """What one item counts. As a factor of rows it costs no further pass over the gradient."""
    dtype = accumulator_dtype(rows.dtype)
    if not isinstance(num_items, Tensor):
        if num_items < 0:
            raise ValueError(f"num_items_in_batch must not be negative, got {num_items}")
        # Of no items, a batch whose labels are all ignored, the loss is 0.
        return torch.full((), 1 / max(num_items, 1), dtype=dtype, device=rows.device)
    # DataParallel hands each replica one number in a dimension of its own.
    if num_items.numel() != 1:
        raise ValueError(
            f"num_items_in_batch must be one number, got a tensor of shape "
            f"{tuple(num_items.shape)}; pass the sum over the batches (Trainer repeats it for "
            f"nn.DataParallel: start one process for each GPU, or show it one GPU only)"
        )
    return num_items.reshape(()).to(rows.device, dtype).reciprocal()
