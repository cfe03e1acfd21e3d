"""Hugging Face transformers: losses for ``Trainer``, and causal LMs with the fused head.

Three doors, from the least to the most:

- :func:`compute_loss_func` for ``Trainer(compute_loss_func=...)``: any model, from its logits.
- :func:`set_loss_function`: the loss inside the model's forward, where that calls one.
- :func:`patch_model`: the same with head and loss fused, so that there are no logits.

Runs with transformers 4.56 and later; :func:`compute_loss_func` does not import it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor
from typing_extensions import Unpack

from anl_kernels.integrations.model_loss import (
    ModelLoss,
    SetLoss,
    TrainerLoss,
    calls_loss_function,
)
from anl_kernels.integrations.shift import Shift, shift_of_model
from anl_kernels.options import LinearOptions, LossOptions
from anl_kernels.terms import Term, Terms

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compute_loss_func(
    terms: Term | Terms, *, shift: Shift = "auto", **options: Unpack[LossOptions]
) -> Callable[..., Tensor]:
    """A loss for ``Trainer(compute_loss_func=...)``, computed of the logits of a model's output.

    It takes the place of the model's own loss, whatever else is in that (a router's balance).

    Args:
        terms: a term or a weighted sum of terms, whose weights are not learned.
        shift: True if the logits of a position predict the label of the next one, as in causal
            language models; the labels move, the logits are not copied. False where labels stand
            at their own logits: classifiers, masked language models, encoder-decoder models.
            "auto": as the class of the output says (``MoeCausalLMOutputWithPast``,
            ``TokenClassifierOutput``, ``Seq2SeqLMOutput``). Tuples, tensors and classes that
            models of both kinds return do not tell, and are an error.
        **options: keywords of :func:`anl_kernels.robust_loss`, but ``reduction``, ``return_aux``
            and ``sample_weight``. ``inplace=True`` saves the gradient's memory: it takes the place
            of the logits as soon as the loss is there, and nothing may read them after that. Not
            with ``torch_compile=True``, whose logits it refuses.

    Returns:
        ``compute(outputs, labels, num_items_in_batch=None)`` of

        - outputs: a model's output with logits (..., K): a mapping, a tuple that begins with
          them, or the logits;
        - labels: (...) class indices;
        - num_items_in_batch: the number of items, an int or a tensor of one number, over which the
          sum is divided, so that accumulated gradients are those of one batch; without it, the
          mean. A tensor on the device of the logits is not waited for.

    Raises:
        TypeError: terms is not a term or has learned weights, an option is unknown, or
            class_scale="running" comes without a tensor for its mean, which no module of the model
            would save. By the result, if labels are None or there are no logits.
        ValueError: an option has a value it cannot have. By the result, if shift is "auto" and the
            outputs do not tell, labels do not fit, or num_items_in_batch is negative, or several
            numbers.

    Example:
        >>> Trainer(model, args, compute_loss_func=compute_loss_func(ak.GCE(q=0.7)), ...)
    """
    return TrainerLoss(terms, shift, options)


def set_loss_function(
    model: PreTrainedModel,
    terms: Term | Terms,
    *,
    shift: Shift = "auto",
    **options: Unpack[LossOptions],
) -> PreTrainedModel:
    """Set the loss that a model's forward computes of its logits when it is given labels.

    Unlike :func:`compute_loss_func` it works without ``Trainer`` too, and what a model adds to its
    loss (a router's balance) stays. Undo it by ``del model._loss_function``.

    **A loss that somebody takes away is an error.** Hooks on the model, which it keeps when it is
    copied, compiled or wrapped, raise RuntimeError in a forward with labels that does not call the
    loss, as after TRL or Liger have replaced the forward, and in one without labels where
    ``Trainer`` has taken them out (``label_smoothing_factor``, ``compute_loss_func``); in backward,
    where a ``Trainer`` trains nothing but a loss of its own of the model's logits.

    Classifiers of transformers do not all hand ``num_items_in_batch`` on, and accumulated gradients
    are not those of one batch then: take :func:`compute_loss_func` for them.

    Args:
        model: a model of transformers whose forward calls ``self.loss_function``.
        terms: as for :func:`compute_loss_func`.
        shift: True or False as for :func:`compute_loss_func`. "auto": as the loss that the model
            computes itself, by its ``loss_type`` or else the classes it inherits from. Labels that
            the model has moved already (``shift_labels``) never move again.
        **options: as for :func:`compute_loss_func`.

    Returns:
        The model.

    Raises:
        ImportError: transformers is missing.
        TypeError: the model is none of transformers, or its forward computes the loss otherwise
            (BERT's classifiers, T5, BART), or one that is not of logits and class indices (question
            answering, detection); and as :func:`compute_loss_func`. By a forward, if labels are no
            class indices (regression).
        ValueError: the model is patched by :func:`patch_model`, or shift is "auto" and nothing
            tells; and as :func:`compute_loss_func`.
        RuntimeError: Liger or TRL have replaced the model's forward. By a forward or a backward, if
            the loss is passed over.

    Example:
        >>> set_loss_function(model, ak.GCE(q=0.7))
        >>> model(input_ids=ids, labels=ids).loss.backward()
    """
    from anl_kernels.integrations.fused_head import check_model

    name = check_model(model)
    if not calls_loss_function(model):
        raise TypeError(
            f"{name} cannot have a loss_function set: its forward does not call any, and would go "
            f"on with its own loss; use Trainer(compute_loss_func=compute_loss_func(...))"
        )
    SetLoss(model, terms, shift_of_model(model) if shift == "auto" else shift, options)
    return model


def loss_function(
    terms: Term | Terms, *, shift: Shift = "auto", **options: Unpack[LossOptions]
) -> Callable[..., Tensor]:
    """What :func:`set_loss_function` sets, for code that calls ``model.loss_function`` itself.

    Set by ``model.loss_function = ...`` it is **ignored without a word** by the models whose
    forward calls none (BERT's classifiers, T5, BART), and nothing sees to it that it is called:
    :func:`set_loss_function` does both.

    Args:
        terms: as for :func:`compute_loss_func`.
        shift: True or False as for :func:`compute_loss_func`. With "auto" a call must have
            ``shift_labels`` or ``pooled_logits``, for logits and labels alone do not tell.
        **options: as for :func:`compute_loss_func`.

    Returns:
        A function as those of transformers' ``LOSS_MAPPING``: of logits and labels, in either
        order, of ``pooled_logits`` where a model has both, ``num_items_in_batch`` and
        ``shift_labels``.

    Raises:
        As :func:`compute_loss_func`.

    Example:
        >>> loss = loss_function(ak.GCE(q=0.7), shift=True)(logits, labels, num_items_in_batch=17)
    """
    return ModelLoss(terms, shift, options)


def patch_model(
    model: PreTrainedModel,
    terms: Term | Terms,
    *,
    fuse_in_eval: bool = True,
    **options: Unpack[LinearOptions],
) -> PreTrainedModel:
    """Let a causal LM compute its loss by :class:`anl_kernels.LinearRobustLoss`, in place.

    **A forward with labels then returns no logits**: its output, of the model's own class, has
    ``logits=None``. Without labels, as in generation, nothing changes. The model's forward is run
    as it is, all but its head: what it adds to the loss, and ``num_items_in_batch``, keep their
    effect. What it does to logits is noted in every forward: a factor (Cohere, Granite) and a
    softcap (Gemma 2) are fused too, anything else, before the loss or after it, is an error.

    **A loss that somebody takes away is an error**, as with :func:`set_loss_function`.

    The model's modules, parameters and keys stay what they are. It may be copied, saved, compiled,
    checkpointed, wrapped by DDP, or by FSDP as a whole, before or after. One that
    ``from_pretrained`` loads is not patched; a head that is replaced (``resize_token_embeddings``)
    needs :func:`unpatch_model` before and ``patch_model`` after.

    Args:
        model: a causal LM of transformers whose head is a plain ``nn.Linear``, tied or not.
        terms: a term or a weighted sum of terms, whose weights are not learned.
        fuse_in_eval: False for logits, and a loss computed of them, where ``model.training`` is
            False: for ``compute_metrics``, which otherwise gets nothing.
        **options: keywords of :func:`anl_kernels.linear_robust_loss`, but ``reduction``,
            ``return_aux``, ``sample_weight`` and ``logit_softcap``, which the model says itself.

    Returns:
        The model.

    Raises:
        ImportError: transformers is missing.
        TypeError: the model is none of transformers, its head is no plain linear layer (LoRA on
            the head: merge it), it computes its loss otherwise, terms is not a term or has learned
            weights, or an option is unknown.
        ValueError: an option has a value it cannot have, or the model is patched already. By a
            forward, if labels do not fit the hidden states (with ``logits_to_keep``), or if the
            model needs logits for anything else (a z-loss of its own).
        RuntimeError: as :func:`set_loss_function`.

    Example:
        >>> patch_model(model, ak.GCE(q=0.7))
        >>> model(input_ids=ids, labels=ids).loss.backward()
    """
    from anl_kernels.integrations.fused_head import FusedHead

    FusedHead(model, terms, fuse_in_eval, options)
    return model


def unpatch_model(model: PreTrainedModel) -> PreTrainedModel:
    """Undo :func:`patch_model`; a ``loss_function`` that was set since stays.

    Returns:
        The model.

    Raises:
        ImportError: transformers is missing.
        ValueError: the model is not patched.
    """
    from anl_kernels.integrations.fused_head import FusedHead

    found = FusedHead.of(model)
    if found is None:
        raise ValueError(
            f"model must be patched, got {type(model).__name__} without the hooks of patch_model; "
            f"give the model itself, not what wraps it"
        )
    found.remove(model)
    return model
