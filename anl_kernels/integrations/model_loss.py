"""Losses of logits as transformers calls them: by its Trainer, or by a model's own forward.

They are classes, not closures, so that a model that has one can be pickled and copied.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from anl_kernels.integrations.items import LogitsLoss
from anl_kernels.integrations.shift import Shift, check_shift, shift_of_outputs
from anl_kernels.integrations.watch import Watch, has_labels, place_of_labels
from anl_kernels.options import LossOptions
from anl_kernels.terms import Term, Terms

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Owner = TypeVar("Owner")


class TrainerLoss:
    """What ``Trainer`` calls with a model's output; see ``compute_loss_func``."""

    def __init__(self, terms: Term | Terms, shift: Shift, options: LossOptions) -> None:
        check_shift(shift)
        self.of_logits = LogitsLoss(terms, options)
        self.shift = shift

    def __call__(
        self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss of the logits among the outputs."""
        logits = _logits_of(outputs)
        shift = shift_of_outputs(outputs) if self.shift == "auto" else self.shift
        return self.of_logits(logits, labels, num_items_in_batch, shift=shift)


class ModelLoss:
    """What a model's forward calls with its logits and labels; see ``loss_function``."""

    def __init__(self, terms: Term | Terms, shift: Shift, options: LossOptions) -> None:
        check_shift(shift)
        self.of_logits = LogitsLoss(terms, options)
        self.shift = shift

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
        shift = self.shift if pooled_logits is None or self.shift != "auto" else False
        logits = logits if pooled_logits is None else pooled_logits
        if _is_index(logits) and not _is_index(labels):  # as image classifiers call it
            logits, labels = labels, logits
        if logits is None or _is_index(logits) or (labels is not None and not _is_index(labels)):
            raise TypeError(
                f"the model must call its loss_function with logits and with labels that are class "
                f"indices, got {_kind(logits)} and {_kind(labels)}; the loss of regression, of "
                f"several labels for one example and of question answering is none of these losses"
            )
        return self.of_logits(logits, labels, num_items_in_batch, shift_labels, shift=shift)


class SetLoss(ModelLoss):
    """The loss that is set on a model, with hooks which see that it is called.

    The hooks do nothing on a model from which the loss was deleted, or that has another.
    """

    def __init__(
        self, model: PreTrainedModel, terms: Term | Terms, shift: Shift, options: LossOptions
    ) -> None:
        super().__init__(terms, shift, options)
        self.watch = Watch("del model._loss_function")
        self.place_of_labels = place_of_labels(model)
        for earlier in owners_of_hooks(model, SetLoss):
            earlier.remove()
        self.handles = [
            model.register_forward_pre_hook(self.before_model, with_kwargs=True),
            model.register_forward_hook(self.after_model, always_call=True),
        ]
        model.loss_function = self

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """As that of ``ModelLoss``."""
        self.watch.call()
        return super().__call__(*args, **kwargs)

    def before_model(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """See ``Watch.before``."""
        if self._is_set_on(model):
            self.watch.before(model, has_labels(self.place_of_labels, args, kwargs))

    def after_model(self, model: nn.Module, args: Any, output: Any) -> None:
        """See ``Watch.after``."""
        if self._is_set_on(model):
            self.watch.after(model, output)

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()

    def _is_set_on(self, model: nn.Module) -> bool:
        return getattr(model, "_loss_function", None) is self


def calls_loss_function(model: Any) -> bool:
    """Whether the forward of the model's class computes its loss by ``self.loss_function``."""
    return "loss_function" in inspect.unwrap(type(model).forward).__code__.co_names


def owners_of_hooks(model: nn.Module, kind: type[Owner]) -> list[Owner]:
    """The objects of a kind whose methods are hooks of a model, whatever its loss is now."""
    owners = [getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values()]
    return [owner for owner in owners if isinstance(owner, kind)]


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
