"""The Trainer of transformers that calls a model, found among the callers."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch
from torch import nn

Step = tuple[int, int, int]
"""What tells the steps of trainers apart: of numbers, so that what keeps one can be pickled."""


@torch.compiler.assume_constant_result
def who_takes_the_labels() -> str | None:
    """How the Trainer that computes a loss just now takes labels away; None if none does.

    The compiler asks once, while it traces.
    """
    trainer, _ = _find("compute_loss")
    if trainer is None:
        return None
    if getattr(trainer, "compute_loss_func", None) is not None:
        return (
            "the Trainer takes the labels out for its compute_loss_func, and trains that loss; "
            "leave one of the two out"
        )
    if getattr(trainer, "label_smoother", None) is not None:
        return (
            f"the Trainer takes the labels out for label_smoothing_factor="
            f"{trainer.args.label_smoothing_factor}, and trains smoothed cross entropy; leave that "
            f"out, and smooth by ak.CE(label_smoothing=...) among the terms"
        )
    return None


def is_trained(model: nn.Module) -> bool:
    """Whether the Trainer that computes a loss just now trains this model, and not another's."""
    trainer, _ = _find("compute_loss")
    return trainer is not None and any(part is model for part in trainer.model.modules())


def training_step() -> Step | None:
    """The step that a Trainer is in; None outside."""
    trainer, frame = _find("training_step")
    if trainer is None:
        return None
    return id(trainer), trainer.state.global_step, id(frame)


def _find(function: str) -> tuple[Any, Any]:
    """(trainer, frame) of the innermost call of a Trainer's function; (None, None) without."""
    module = sys.modules.get("transformers.trainer")
    if module is None:  # which whoever has a Trainer has imported
        return None, None
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == function:
            caller = frame.f_locals.get("self")
            if isinstance(caller, module.Trainer):
                return caller, frame
        frame = frame.f_back
    return None, None
