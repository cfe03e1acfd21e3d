"""Head and loss together as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from typing_extensions import Unpack

from anl_kernels.distributed.local_parts import is_dtensor
from anl_kernels.linear.functional import linear_robust_loss
from anl_kernels.losses import Criterion
from anl_kernels.options import OPTION_CHECKS_OF_HEAD, LinearOptions
from anl_kernels.rows.loss import Aux
from anl_kernels.terms import Term, Terms


class LinearRobustLoss(Criterion):
    """A classifier's head with its loss: :func:`anl_kernels.linear_robust_loss` as a module.

    Args:
        head: the head, an ``nn.Linear`` of D features and K classes. It becomes a submodule; one
            that the model has too, or whose weight is tied to an embedding, stays shared.
        terms: a term or a weighted sum of terms; parameters among the weights are registered.
        **options: keywords of :func:`anl_kernels.linear_robust_loss`, fixed for every call.
            ``weight`` becomes a buffer. ``sample_weight``, ``target_b`` and ``lam`` go to the call.

    Raises:
        TypeError: head is no plain ``nn.Linear`` (what a forward of its own or hooks would do, the
            loss would not), terms is not a term, or an option is unknown.
        ValueError: an option has a value it cannot have; what depends on tensors, the call says.

    Example:
        >>> criterion = ak.LinearRobustLoss(nn.Linear(4096, 128256, bias=False), ak.GCE(q=0.7))
        >>> loss = criterion(hidden, target)
        >>> prediction = criterion.logits(hidden[:, -1]).argmax(-1)
    """

    keywords = LinearOptions
    option_checks = OPTION_CHECKS_OF_HEAD

    def __init__(
        self, head: nn.Linear, terms: Term | Terms, **options: Unpack[LinearOptions]
    ) -> None:
        _check_head(head)
        super().__init__(terms, dict(options))
        self._softcap: float | None = self.options.get("logit_softcap")
        self.head = head

    def forward(
        self,
        hidden: Tensor,
        target: Tensor,
        sample_weight: Tensor | None = None,
        *,
        target_b: Tensor | None = None,
        lam: float | Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Aux]:
        """The loss; shapes and errors as :func:`anl_kernels.linear_robust_loss`."""
        if is_dtensor(self.head.weight) and _is_sharded_by_fsdp(self.head):
            raise ValueError(
                "head must not be given to fully_shard by itself: its weight is gathered for calls "
                "of the head alone; give fully_shard this LinearRobustLoss, or what contains it"
            )
        _check_weight(self.head)
        return linear_robust_loss(
            hidden,
            self.head.weight,
            target,
            self.current_terms(),
            self.head.bias,
            weight=self.weight,
            sample_weight=sample_weight,
            target_b=target_b,
            lam=lam,
            **self.current_options(),
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """The head's output with its softcap and without padding, (..., K), for predictions.

        Raises:
            ValueError: ranks share the classes, of which none has whole rows.
        """
        if self.options.get("process_group") is not None:
            raise ValueError(
                "logits are of whole rows, and with process_group every rank has some of the "
                "classes: call head for this rank's, and gather them, or ask the loss for argmax "
                "in return_aux"
            )
        logits = self.head(hidden)[..., : self.options.get("num_classes")]
        return self._softcap * torch.tanh(logits / self._softcap) if self._softcap else logits


def _check_head(head: nn.Linear) -> None:
    """The loss reads weight and bias: whatever else a head does would be left out silently."""
    name = f"{type(head).__module__}.{type(head).__qualname__}"
    if not isinstance(head, nn.Linear):
        raise TypeError(f"head must be an nn.Linear, got {name}{_cure(head)}")
    if is_lazy(head.weight):
        raise TypeError(
            f"head must know its number of features, got a {type(head).__name__} that was not "
            f"called yet; call it, or the model, once with an input"
        )
    if type(head).forward is not nn.Linear.forward:
        raise TypeError(
            f"head must be a plain nn.Linear, got {type(head).__name__} with a forward of its own; "
            f"merge what it adds into the weight, or call ak.linear_robust_loss with that weight"
            f"{_cure(head)}"
        )
    if "forward" in head.__dict__:
        if is_dtensor(head.weight):
            raise TypeError(
                "head must be a plain nn.Linear, got one whose forward was replaced for tensor "
                "parallelism (tp_plan of transformers), which the loss would not call; take the "
                "head out of the plan, or use a loss of its logits (set_loss_function, "
                "compute_loss_func, ak.robust_loss)"
            )
        raise TypeError(
            "head must be a plain nn.Linear, got one whose forward was replaced, as offloading "
            "hooks do (accelerate with device_map), which the loss would not call; keep the head "
            "on its device, or remove the hooks: accelerate.hooks.remove_hook_from_module(head)"
        )
    _check_weight(head)
    if hasattr(head.weight, "ds_id") and (head._forward_hooks or head._forward_pre_hooks):
        raise TypeError(
            "head must not belong to a DeepSpeed engine yet, which under ZeRO-3 gathers its weight "
            "for calls of the head alone; call patch_model, or give the model its "
            "ak.LinearRobustLoss, before deepspeed.initialize (Trainer calls that in train)"
        )
    if head._forward_hooks or head._forward_pre_hooks:
        raise TypeError(
            "head must have no forward hooks, which the loss would not call; remove them (for "
            "weight_norm use torch.nn.utils.parametrizations.weight_norm)"
        )


def _cure(head: nn.Module) -> str:
    """What to do about a head that is none, where it can be told."""
    of_logits = "use a loss of its logits (set_loss_function, compute_loss_func, ak.robust_loss)"
    if hasattr(head, "modules_to_save"):
        return ", a wrapper of peft; give the head that is trained, head.modules_to_save['default']"
    if hasattr(head, "base_layer"):
        return (
            f", an adapter of peft on the head; merge it (merge_and_unload), take the head out of "
            f"target_modules, or {of_logits}"
        )
    if any(word in type(head).__module__ for word in ("quant", "bitsandbytes", "torchao")):
        return f", which is quantised; leave the head out of quantisation, or {of_logits}"
    if isinstance(head, nn.Linear):
        return ""
    return (
        "; of another layer, give the nn.Linear inside, or the one that it was made from "
        "(quantised heads have no weight to train), or call ak.linear_robust_loss with its weight"
    )


def _check_weight(head: nn.Linear) -> None:
    """A tensor that computes F.linear by itself would not be asked to."""
    weight = head.weight
    if is_traceable_wrapper_subclass(weight) and not is_dtensor(weight):
        kind = f"{type(weight).__module__}.{type(weight).__qualname__}"
        raise TypeError(
            f"head must have a plain tensor for its weight, got {kind}, as quantisation (torchao) "
            f"makes it; leave the head out of quantisation, or use a loss of its logits "
            f"(set_loss_function, compute_loss_func, ak.robust_loss)"
        )


def _is_sharded_by_fsdp(head: nn.Linear) -> bool:
    return any(base.__name__ == "FSDPModule" for base in type(head).__mro__)
