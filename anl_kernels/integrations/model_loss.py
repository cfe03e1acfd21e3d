"""Losses of logits as transformers calls them: by its Trainer, or by a model's own forward.

They are classes, not closures, so that a model that has one can be pickled and copied.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anl_kernels.integrations.items import LogitsLoss
from anl_kernels.options import LossOptions
from anl_kernels.terms import Term, Terms


class TrainerLoss:
    """What ``Trainer`` calls with a model's output; see ``compute_loss_func``."""

    def __init__(self, terms: Term | Terms, shift: bool, options: LossOptions) -> None:
        self.of_logits = LogitsLoss(terms, shift, options)

    def __call__(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss of the logits among the outputs."""
        return self.of_logits(_logits_of(outputs), labels, num_items_in_batch)


class ModelLoss:
    """What a model's forward calls with its logits and labels; see ``loss_function``."""

    def __init__(self, terms: Term | Terms, shift: bool, options: LossOptions) -> None:
        self.of_logits = LogitsLoss(terms, shift, options)

    def __call__(
        self,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
        *_: Any,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        pooled_logits: Tensor | None = None,
        **__: Any,
    ) -> Tensor:
        """The loss of logits and labels, in either order."""
        logits = logits if pooled_logits is None else pooled_logits
        if _is_index(logits) and not _is_index(labels):  # as image classifiers call it
            logits, labels = labels, logits
        if logits is None or _is_index(logits) or (labels is not None and not _is_index(labels)):
            raise TypeError(
                f"the model must call its loss_function with logits and with labels that are class "
                f"indices, got {_kind(logits)} and {_kind(labels)}; the loss of regression, of "
                f"several labels for one example and of question answering is none of these losses"
            )
        return self.of_logits(logits, labels, num_items_in_batch, shift_labels)


def calls_loss_function(model: Any) -> bool:
    """Whether the forward of the model's class computes its loss by ``self.loss_function``."""
    return "loss_function" in inspect.unwrap(type(model).forward).__code__.co_names


def _logits_of(outputs: Any) -> Tensor:
    if isinstance(outputs, Mapping):
        logits = outputs.get("logits")
    else:
        logits = outputs[0] if isinstance(outputs, tuple | list) else outputs
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"outputs must have logits, got {type(outputs).__name__} without; a model that "
            f"patch_model changed returns none where it is given labels: take its loss instead, or "
            f"call unpatch_model"
        )
    return logits


def _is_index(tensor: Tensor | None) -> bool:
    return tensor is not None and not tensor.is_floating_point()


def _kind(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
