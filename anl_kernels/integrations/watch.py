"""Sees to it that the loss that was set on a model is the loss that is computed.

Others take it away without a word: libraries that replace the model's forward by one with a loss of
its own, and trainers that keep the labels and compute their loss of the logits.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from anl_kernels.integrations.callers import (
    Step,
    is_trained,
    training_step,
    who_takes_the_labels,
)

REPLACERS = {
    "liger_kernel": (
        "which computes cross entropy; keep Liger's other kernels without that, by "
        "apply_liger_kernel_to_...(fused_linear_cross_entropy=False), or TrainingArguments("
        "use_liger_kernel=True, liger_kernel_config={'fused_linear_cross_entropy': False})"
    ),
    "trl": (
        "from which TRL's trainer computes a loss of its own; train with transformers.Trainer, or "
        "with anl_kernels.integrations.trl.RobustSFTTrainer a model with no loss set"
    ),
}
"""Packages that replace the forward of models, and what to do about it."""
HARMLESS = "transformers", "torch", "accelerate"
"""Packages whose forwards call the loss of a model that calls one."""


class Watch:
    """Whether a forward of a model that is given labels calls the loss that is set on it.

    Args:
        undo: how to take that loss off the model.
    """

    def __init__(self, undo: str) -> None:
        self.undo = undo
        self.labelled = self.called = False
        self.unlabelled_in: Step | None = None
        self.served: Step | None = None

    def before(self, model: nn.Module, labelled: bool) -> None:
        """Before a forward. Raise RuntimeError if a Trainer has taken its labels out."""
        if getattr(model, "_is_replica", False):  # all of nn.DataParallel's threads share this
            check_forward(model)
            return
        self.labelled, self.called, self.unlabelled_in = labelled, False, None
        if labelled:
            return
        compiling, training = torch.compiler.is_compiling(), _is_training(model)
        cause = who_takes_the_labels() if training or not compiling else None
        if cause is not None and (compiling or is_trained(model)):
            raise self._error(model, cause)
        if training and not compiling:  # a logger would break the graph
            self.unlabelled_in = training_step()
            if self.unlabelled_in is None:
                _tell_that_there_is_no_loss()

    def call(self) -> None:
        """When the loss is computed."""
        self.called = True
        if not torch.compiler.is_compiling():
            self.served = training_step()

    def after(self, model: nn.Module, output: Any) -> None:
        """After a forward. Raise RuntimeError if it had labels and has not called the loss."""
        labelled, step = self.labelled, self.unlabelled_in
        self.labelled, self.unlabelled_in = False, None
        if output is None:  # as after an exception
            return
        if labelled and not self.called:
            raise self._error(model, _why_not_called(model))
        if step is not None:
            self._expect_a_call(model, output, step)

    def _expect_a_call(self, model: nn.Module, output: Any, step: Step) -> None:
        """A step of a Trainer may call a model without labels too, but not only without."""
        error = self._error(
            model,
            "the Trainer calls it without labels and trains a loss of its own, computed of what it "
            "returns",
        )
        values = output.values() if isinstance(output, Mapping) else output
        for tensor in (values,) if isinstance(values, Tensor) else values:
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(partial(self._check_call, step, error))

    def _check_call(self, step: Step, error: RuntimeError, grad: Tensor) -> None:
        if self.served != step:
            raise error

    def _error(self, model: nn.Module, cause: str) -> RuntimeError:
        return RuntimeError(
            f"the loss that is set on {type(model).__name__} is passed over: {cause} (to take it "
            f"off the model: {self.undo})"
        )


def check_forward(model: nn.Module) -> None:
    """Raise RuntimeError if the model's forward is one that is known to pass losses over."""
    for module in _modules_of_forward(model):
        advice = REPLACERS.get(module.partition(".")[0])
        if advice is not None:
            raise RuntimeError(
                f"a loss that is set on {type(model).__name__} would be passed over: its forward "
                f"is that of {module}, {advice}"
            )


def place_of_labels(model: nn.Module) -> int | None:
    """Where labels stand among the positional arguments of a model's forward."""
    names = list(inspect.signature(type(model).forward).parameters)
    return names.index("labels") - 1 if "labels" in names else None  # self is no argument


def has_labels(place: int | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a forward with these arguments is given labels, which may have moved already."""
    if place is not None and place < len(args):
        return args[place] is not None
    return kwargs.get("labels") is not None or kwargs.get("shift_labels") is not None


def _why_not_called(model: nn.Module) -> str:
    for module in _modules_of_forward(model):
        package = module.partition(".")[0]
        if package not in HARMLESS:
            advice = REPLACERS.get(package, "which does not call model.loss_function")
            return f"its forward is that of {module}, {advice}"
    return "its forward was given labels and has not called model.loss_function"


def _modules_of_forward(model: nn.Module) -> Iterator[str]:
    """Names of the modules where a model's forward and what it wraps are defined."""
    forward: Any = model.forward
    while forward is not None:
        forward = getattr(forward, "__func__", forward)
        yield getattr(forward, "__globals__", {}).get("__name__", "")
        forward = getattr(forward, "__wrapped__", None)


def _is_training(model: nn.Module) -> bool:
    return model.training and torch.is_grad_enabled()


@cache
def _tell_that_there_is_no_loss() -> None:
    logging.getLogger(__name__).warning(
        "a model on which a loss is set was called in training without labels, and returns logits "
        "without that loss"
    )
