"""A causal LM of transformers whose head is fused with its loss: hooks on the model and its head.

The model's own forward runs. Its head, when labels are there, keeps the hidden states and returns
:class:`NoLogits`, and the model's loss function computes the loss of what the head has kept.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from anl_kernels.integrations.items import ItemLoss, LogitsLoss, next_labels
from anl_kernels.integrations.logit_law import LogitLaw, NoLogits
from anl_kernels.integrations.model_loss import ModelLoss, calls_loss_function, owners_of_hooks
from anl_kernels.integrations.shift import Shift, ask_for_shift
from anl_kernels.integrations.watch import Watch, check_forward, has_labels, place_of_labels
from anl_kernels.linear.module import LinearRobustLoss
from anl_kernels.options import LossOptions
from anl_kernels.terms import Term, Terms

try:
    from transformers import PreTrainedModel
    from transformers.loss.loss_utils import ForCausalLMLoss
except ImportError as error:
    raise ImportError(
        f"patch_model needs transformers: pip install anl-kernels[transformers] ({error})"
    ) from error


class FusedHead:
    """What a patched model has as its ``loss_function``; making it changes the model.

    It is no ``nn.Module``, or it would become one of the model's. Copies of the model have their
    own, whose head is the copy's.
    """

    tells = True
    """Whether to say, once, that evaluation has no logits."""

    def __init__(
        self,
        model: PreTrainedModel,
        terms: Term | Terms,
        fuse_in_eval: bool,
        options: Mapping[str, Any],
    ) -> None:
        self.name = self.checked_name(model)
        if "logit_softcap" in options:
            raise TypeError("logit_softcap is no option here: the model's own is used")
        self.head = _head_of(model)
        try:
            self.loss = self.make_loss(terms, options)
        except TypeError as error:
            raise TypeError(f"{self.name} cannot be patched: {error}") from error
        shared = {k: v for k, v in options.items() if k in LossOptions.__annotations__}
        self.of_logits = LogitsLoss(terms, shared)
        self.fuse_in_eval = fuse_in_eval
        self.law = LogitLaw()
        self.active = False
        self.hidden: Tensor | None = None
        self.watch = Watch("unpatch_model")
        self.shift: Shift = "auto" if model.config.is_encoder_decoder else True
        self.place_of_labels = place_of_labels(model)
        self.handles = [
            model.register_forward_pre_hook(self.before_model, with_kwargs=True),
            model.register_forward_hook(self.after_model, with_kwargs=True, always_call=True),
            self.head.register_forward_pre_hook(self.before_head),
            self.head.register_forward_hook(self.after_head),
        ]
        model.loss_function = self

    def checked_name(self, model: PreTrainedModel) -> str:
        """The name of the model's class; raise if it cannot be patched."""
        name = check_model(model)
        check_loss_function(model)
        return name

    @classmethod
    def of(cls, model: nn.Module) -> FusedHead | None:
        """The one whose hooks a model has, whatever its loss_function is now; None without."""
        return next(iter(owners_of_hooks(model, cls)), None)

    def remove(self, model: PreTrainedModel) -> None:
        """Take everything off the model again, but a loss_function that was set since."""
        for handle in self.handles:
            handle.remove()
        if model.loss_function is self:
            del model._loss_function

    def before_model(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Whether this forward has labels."""
        if getattr(model, "_is_replica", False):
            raise RuntimeError(
                "a patched model cannot be run by nn.DataParallel, whose threads share it; start "
                "one process for each GPU (torchrun, accelerate launch), or show it one GPU only"
            )
        labelled = has_labels(self.place_of_labels, args, kwargs)
        self.hidden = None
        self.active = labelled and (model.training or self.fuse_in_eval)
        if self.active and model.loss_function is not self:
            self.active = False
            raise RuntimeError(
                f"loss_function of a patched {self.name} was changed or deleted; call "
                f"unpatch_model to have that loss, and patch_model after it for another"
            )
        if self.active:
            self._check_head(model)
        self.watch.before(model, labelled)
        # A logger would break the graph.
        quiet = model.training or not self.tells
        if self.active and not quiet and not torch.compiler.is_compiling():
            _tell_that_there_are_no_logits()

    def _check_head(self, model: Any) -> None:
        if _head_of(model) is self.head:
            return
        self.active = False
        raise RuntimeError(
            f"the head of {self.name} was replaced after patch_model, by "
            f"{_kind(model.get_output_embeddings())} (LoRA on the head, modules_to_save, new "
            f"embeddings); call unpatch_model before that, and patch_model after it, or take the "
            f"head out of target_modules"
        )

    def before_head(self, head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        """Keep the hidden states, and give the head nothing to do."""
        if not self.active:
            return None
        if self.hidden is not None:
            raise RuntimeError(f"{self.name} calls its head more than once: it cannot be patched")
        self.hidden = args[0]
        return (args[0][:0],)

    def after_head(self, head: nn.Module, args: Any, logits: Tensor) -> NoLogits | None:
        """In the place of logits what notes what the model does to them."""
        if self.hidden is None:
            return None
        shape = torch.Size((*self.hidden.shape[:-1], logits.shape[-1]))
        return NoLogits(self.name, logits, shape, LogitLaw())

    def __call__(
        self,
        logits: Tensor | NoLogits,
        labels: Tensor | None,
        *_: Any,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        **__: Any,
    ) -> Tensor:
        """The loss of the hidden states that the head was given, or of logits if there are any."""
        self.watch.call()
        if not self.active:
            assert isinstance(logits, Tensor)
            return self.of_logits(
                logits, labels, num_items_in_batch, shift_labels, shift=self.shift
            )
        hidden = self.hidden
        if hidden is None or not isinstance(logits, NoLogits):
            raise RuntimeError(
                f"the head of {self.name} was not called, or its output is no longer its own: was "
                f"its forward replaced after patch_model? Call unpatch_model before that, and "
                f"patch_model after it"
            )
        if self.head.weight.is_meta and not hidden.is_meta:
            raise RuntimeError(
                f"the head of {self.name} is offloaded: its weight is there for calls of the head "
                f"alone; keep the head on its device, or call unpatch_model"
            )
        self._apply(logits)
        if shift_labels is None:
            assert labels is not None  # or this forward would not be active
            if self.shift == "auto":
                raise ask_for_shift(
                    f"{self.name} is an encoder-decoder and hands on no shift_labels",
                    "use compute_loss_func and ",
                )
            shift_labels = next_labels(labels, self.loss.ignore_index)
        if shift_labels.shape != hidden.shape[:-1]:
            raise ValueError(
                f"labels must have shape {tuple(hidden.shape[:-1])}, one for each hidden state, "
                f"got {tuple(shift_labels.shape)}; pass no logits_to_keep with labels"
            )
        rows = hidden.reshape(-1, hidden.shape[-1]).to(self.head.weight.device)
        target = shift_labels.to(rows.device).reshape(-1)
        scale = self.law.scale
        return self.compute(rows if scale == 1 else rows * scale, target, num_items_in_batch)

    def make_loss(self, terms: Term | Terms, options: Mapping[str, Any]) -> ItemLoss:
        """What :meth:`compute` calls, before there are hooks on the head."""
        return ItemLoss(partial(LinearRobustLoss, self.head, terms), options)

    def compute(self, rows: Tensor, target: Tensor, num_items: Tensor | int | None) -> Tensor:
        """The loss of (N, D) hidden states and (N,) labels."""
        return self.loss(rows, target, num_items)

    def after_model(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Take what stands for logits out of the output."""
        active = self.active
        self.active, self.hidden = False, None
        self.watch.after(model, output)
        if not active or output is None:  # as after an exception
            return None
        if isinstance(output, tuple):
            return tuple(value for value in output if not isinstance(value, NoLogits))
        without = {k: None if isinstance(v, NoLogits) else v for k, v in output.items()}
        return type(output)(**without)

    def _apply(self, logits: NoLogits) -> None:
        """Do what the model has done to its logits."""
        losses = self.loss.mean, self.loss.total
        num_classes = losses[0].options.get("num_classes") or self.head.out_features
        if logits.shape[-1] < num_classes:
            raise ValueError(
                f"{self.name} drops the columns of its logits from {logits.shape[-1]} on; pass "
                f"num_classes={logits.shape[-1]}"
            )
        if logits.law == self.law:
            return
        if logits.law.scale != 1 and self.head.bias is not None:
            raise ValueError(
                f"{self.name} multiplies its logits by {logits.law.scale} after a bias, which "
                f"patch_model does not know; use compute_loss_func or loss_function"
            )
        for criterion in losses:
            criterion.options["logit_softcap"] = logits.law.softcap
        self.law = logits.law


def check_model(model: PreTrainedModel) -> str:
    """The name of its class; raise if it is none of transformers or patched."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model must be a PreTrainedModel of transformers, got {name}; give the model before "
            f"it is wrapped or compiled (of a PeftModel: model.get_base_model())"
        )
    if FusedHead.of(model) is not None:
        raise ValueError(f"model must not be patched already, got a patched {name}; unpatch_model")
    check_forward(model)
    return name


def _head_of(model: PreTrainedModel) -> Any:
    """The head that a forward calls: of peft's ``modules_to_save`` the one that is active."""
    head: Any = model.get_output_embeddings()
    if not hasattr(head, "modules_to_save"):
        return head
    if head.disable_adapters or not head.active_adapters:
        return head.original_module
    return head.modules_to_save[head.active_adapters[0]]


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def check_loss_function(model: PreTrainedModel) -> None:
    """Raise TypeError unless the model computes the loss of causal LMs by its loss_function."""
    if isinstance(model.loss_function, ModelLoss):
        raise TypeError(
            f"{type(model).__name__} has a loss set already; first del model._loss_function"
        )
    if not calls_loss_function(model) or model.loss_function is not ForCausalLMLoss:
        raise TypeError(
            f"{type(model).__name__} cannot be patched: its forward does not compute the loss of a "
            f"causal language model by model.loss_function, as those of transformers do"
        )


@cache
def _tell_that_there_are_no_logits() -> None:
    logging.getLogger(__name__).warning(
        "a patched model was given labels in evaluation and returns logits=None; a call without "
        "labels has logits, and so has patch_model(..., fuse_in_eval=False)"
    )
