"""Whether logits predict the label of the next position: what tells, and what to ask otherwise."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Shift = bool | Literal["auto"]

# Not all of them: models for CTC have CausalLMOutput, and some that return
# CausalLMOutputWithCrossAttentions, such as BartForCausalLM, do not move their labels.
NEXT = re.compile(r"\w+CausalLMOutput|\w*CausalLMOutputWithPast")
"""Output classes of causal language models."""
OWN = re.compile(
    r"\w*(MaskedLM|Seq2SeqLM|Seq2SeqMoE|NextSentencePredictor)Output"
    r"|\w*(Classifier|Classification|MultipleChoice)(Model)?Output\w*"
)
"""Output classes of models whose labels stand at their own logits."""
LOSSES = {
    "ForCausalLMLoss": True,
    "ForMaskedLMLoss": False,
    "ForTokenClassification": False,
    "ForSequenceClassificationLoss": False,
}
"""Losses of transformers that are of logits and class indices."""


def check_shift(shift: Shift) -> None:
    """Raise TypeError unless shift is one of its values."""
    if not isinstance(shift, bool) and shift != "auto":
        raise TypeError(f"shift must be True, False or 'auto', got {shift!r}")


def ask_for_shift(what: str, cure: str = "") -> ValueError:
    """The error where ``what`` does not tell."""
    return ValueError(
        f"shift must be given here, because {what}: {cure}pass shift=True if the logits of a "
        f"position predict the label of the next one (causal language models), shift=False if "
        f"labels stand at their own logits (classifiers, masked language models, encoder-decoders)"
    )


def shift_of_outputs(outputs: Any) -> bool:
    """Of the class of a model's output; raise ValueError if that does not tell."""
    for base in type(outputs).__mro__:
        if NEXT.fullmatch(base.__name__):
            return True
        if OWN.fullmatch(base.__name__):
            return False
    raise ask_for_shift(f"outputs of class {type(outputs).__name__} do not tell")


def shift_of_model(model: PreTrainedModel) -> Shift:
    """Of the loss that a model computes itself, whatever has been set on it.

    "auto" for an encoder-decoder that has the loss of causal language models: it moves its labels
    itself, and says so by ``shift_labels``, or this cannot be told.

    Raises:
        TypeError: that loss is of another kind.
        ValueError: nothing tells which it is.
    """
    name, loss = type(model).__name__, _own_loss(model)
    if loss is None:
        raise ask_for_shift(f"neither loss_type nor the classes of {name} tell")
    if loss not in LOSSES:
        raise TypeError(
            f"{name} cannot have a loss set: its own is transformers' {loss}, which is not of "
            f"logits and class indices as these losses are; if it can be trained so all the same, "
            f"pass shift=False"
        )
    if LOSSES[loss] and getattr(model.config, "is_encoder_decoder", False):
        return "auto"
    return LOSSES[loss]


def _own_loss(model: PreTrainedModel) -> str | None:
    """The name of a model's loss: by its loss_type, or else by the classes it is made of.

    The class of a user has a name that transformers does not know, and some of its own do.
    """
    from transformers.loss.loss_utils import LOSS_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    def by_name(name: str) -> str | None:
        if name in LOSS_MAPPING:
            return LOSS_MAPPING[name].__name__
        if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            return "ForCausalLMLoss"
        return next((loss.__name__ for key, loss in LOSS_MAPPING.items() if key in name), None)

    kinds = [getattr(model, "loss_type", None)] + [base.__name__ for base in type(model).__mro__]
    return next((loss for kind in kinds if kind and (loss := by_name(kind))), None)
