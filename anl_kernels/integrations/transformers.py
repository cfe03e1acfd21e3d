"""Hugging Face transformers: losses for ``Trainer``, and causal LMs with the fused head.

Three doors, from the least to the most:

- :func:`compute_loss_func` for ``Trainer(compute_loss_func=...)``: any model, from its logits.
- :func:`loss_function` for ``model.loss_function = ...``: the loss inside the model's forward.
- :func:`patch_model`: the same with head and loss fused, so that there are no logits.

Runs with transformers 4.56 and later; the first two do not import it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from typing_extensions import Unpack

from anl_kernels.integrations.items import LogitsLoss
from anl_kernels.options import LinearOptions, LossOptions
from anl_kernels.terms import Term, Terms

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compute_loss_func(
    terms: Term | Terms, *, shift: bool = True, **options: Unpack[LossOptions]
) -> Callable[..., Tensor]:
    """A loss for ``Trainer(compute_loss_func=...)``, computed of the logits of a model's output.

    Args:
        terms: a term or a weighted sum of terms.
        shift: the logits of a position predict the label of the next one, as in causal language
            models. The labels move; the logits are not copied. False for classification heads.
        **options: keywords of :func:`anl_kernels.robust_loss`, but ``reduction``, ``return_aux``
            and ``sample_weight``. ``inplace=True`` saves the gradient's memory: it takes the place
            of the logits as soon as the loss is there, and nothing may read them after that.

    Returns:
        ``compute(outputs, labels, num_items_in_batch=None)`` of

        - outputs: a model's output with logits (..., K): a mapping, a tuple that begins with
          them, or the logits;
        - labels: (...) class indices;
        - num_items_in_batch: the number of items, an int or a tensor of one number, over which the
          sum is divided, so that accumulated gradients are those of one batch; without it, the
          mean. A tensor on the device of the logits is not waited for.

    Raises:
        TypeError: terms is not a term, or an option is unknown. By the result, if labels are None.
        ValueError: an option has a value it cannot have. By the result, if labels do not fit.

    Example:
        >>> Trainer(model, args, compute_loss_func=compute_loss_func(ak.GCE(q=0.7)), ...)
    """
    of_logits = LogitsLoss(terms, shift, options)

    def compute(
        outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        return of_logits(_logits_of(outputs), labels, num_items_in_batch)

    return compute


def loss_function(
    terms: Term | Terms, *, shift: bool = True, **options: Unpack[LossOptions]
) -> Callable[..., Tensor]:
    """A loss to set as ``model.loss_function``, which a model's forward calls with labels.

    Unlike :func:`compute_loss_func` it works without ``Trainer`` too, and what a model adds to its
    loss (a router's balance) stays.

    Args:
        terms: as for :func:`compute_loss_func`.
        shift: as for :func:`compute_loss_func`.
        **options: as for :func:`compute_loss_func`.

    Returns:
        A function as those of transformers' ``LOSS_MAPPING``: of logits, or of ``pooled_logits``
        where a model has both, labels, ``num_items_in_batch`` and ``shift_labels``.

    Raises:
        As :func:`compute_loss_func`.

    Example:
        >>> model.loss_function = loss_function(ak.GCE(q=0.7))
    """
    of_logits = LogitsLoss(terms, shift, options)

    def loss(
        logits: Tensor,
        labels: Tensor | None,
        *_: Any,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        pooled_logits: Tensor | None = None,
        **__: Any,
    ) -> Tensor:
        logits = logits if pooled_logits is None else pooled_logits
        return of_logits(logits, labels, num_items_in_batch, shift_labels)

    return loss


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
    effect. What it does to logits is found out in the first forward, which waits for the device:
    a factor (Cohere, Granite) and a softcap (Gemma 2) are fused too, anything else is an error.

    The model's modules, parameters and keys stay what they are. It may be copied, saved, compiled,
    checkpointed, wrapped by DDP, or by FSDP as a whole, before or after.

    Args:
        model: a causal LM of transformers whose head is a plain ``nn.Linear``, tied or not.
        terms: a term or a weighted sum of terms.
        fuse_in_eval: False for logits, and a loss computed of them, where ``model.training`` is
            False: for ``compute_metrics``, which otherwise gets nothing.
        **options: keywords of :func:`anl_kernels.linear_robust_loss`, but ``reduction``,
            ``return_aux``, ``sample_weight`` and ``logit_softcap``, which the model says itself.

    Returns:
        The model.

    Raises:
        ImportError: transformers is missing.
        TypeError: the model is none of transformers, its head is no plain linear layer (LoRA on
            the head: merge it), it computes its loss otherwise, terms is not a term, or an option
            is unknown.
        ValueError: an option has a value it cannot have, or the model is patched already. By a
            forward, if labels do not fit the hidden states (with ``logits_to_keep``), or if the
            model does to its logits what is not understood.

    Example:
        >>> patch_model(model, ak.GCE(q=0.7))
        >>> model(input_ids=ids, labels=ids).loss.backward()
    """
    from anl_kernels.integrations.fused_head import FusedHead

    FusedHead(model, terms, fuse_in_eval, options)
    return model


def unpatch_model(model: PreTrainedModel) -> PreTrainedModel:
    """Undo :func:`patch_model`.

    Returns:
        The model.

    Raises:
        ImportError: transformers is missing.
        ValueError: the model is not patched.
    """
    from anl_kernels.integrations.fused_head import FusedHead

    FusedHead.of(model).remove(model)
    return model


def _logits_of(outputs: Any) -> Tensor:
    if isinstance(outputs, Mapping):
        return outputs["logits"]
    return outputs[0] if isinstance(outputs, tuple | list) else outputs
