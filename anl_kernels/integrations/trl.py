"""TRL: its SFTTrainer with a robust loss of the fused head, and with its own metrics.

``RobustSFTTrainer`` is ``trl.SFTTrainer`` but for the loss of the tokens. TRL's trainer asks the
model for log-probabilities, entropies and hits (``fused_lm_head=True``) and sums them up; here the
model answers with the loss of these terms, out of one pass over the head that makes no logits.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from anl_kernels.integrations.fused_head import FusedHead, check_loss_function
from anl_kernels.integrations.items import ItemLoss
from anl_kernels.linear.module import LinearRobustLoss
from anl_kernels.options import LinearOptions
from anl_kernels.terms import Term, Terms

try:
    import trl
    from transformers.loss.loss_utils import ForCausalLMLoss
    from trl import SFTTrainer
    from trl.trainer.utils import FusedCausalLMOutput
except ImportError as error:
    raise ImportError(
        f"RobustSFTTrainer needs TRL 1.16 with FusedCausalLMOutput: pip install trl ({error})"
    ) from error

_FOUND = ("log_probs", "entropy", "is_top1", "label_mask", "aux_loss")
_IGNORE = -100  # which is TRL's
_CLOSE = 1e-3


def _changed(what: str) -> RuntimeError:
    return RuntimeError(
        f"RobustSFTTrainer was written for TRL 1.16.0 and does not fit TRL {trl.__version__}: "
        f"{what}; install trl==1.16.0, or train with transformers.Trainer and patch_model"
    )


class RobustSFTTrainer(SFTTrainer):
    """``trl.SFTTrainer`` whose loss is a sum of terms, by the fused head: no logits are made.

    Packing, padding-free batches, masks of completions and of assistants, accumulated gradients,
    evaluation, adapters of peft beside the head and TRL's metrics (entropy, mean_token_accuracy,
    num_tokens, aux_loss) are TRL's own. With ``ak.CE()`` it trains what ``loss_type="nll"`` does,
    with ``ak.DFT()`` what ``"dft"`` does, to rounding.

    Args:
        *args: as for ``trl.SFTTrainer``.
        terms: a term or a weighted sum of terms, whose weights are not learned.
        **kwargs: as for ``trl.SFTTrainer``, and keywords of
            :func:`anl_kernels.linear_robust_loss` but ``reduction``, ``return_aux``,
            ``sample_weight``, ``ignore_index`` (TRL's is -100), ``skip_ignored`` (ignored tokens
            are left out) and ``logit_softcap``, which the model says itself.

    Raises:
        ImportError: TRL is missing, or lacks what this relies on.
        TypeError: ``compute_loss_func`` is given; or the model, the terms or an option cannot be
            used, as for :func:`anl_kernels.integrations.transformers.patch_model`.
        ValueError: ``args`` ask for another loss: ``loss_type="dft"``, ``label_smoothing_factor``,
            or DeepSpeed's sequence parallelism, which takes the model's own.
        RuntimeError: this TRL computes its loss otherwise; by the first step.

    Example:
        >>> trainer = RobustSFTTrainer(model, args, train_dataset=data, terms=ak.GCE(q=0.7))
        >>> trainer.train()
    """

    def __init__(self, *args: Any, terms: Term | Terms, **kwargs: Any) -> None:
        options = _taken_out(kwargs)
        if kwargs.get("compute_loss_func") is not None:
            raise TypeError("compute_loss_func goes with no terms: leave one of the two out")
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None:
            raise TypeError("compute_loss_func goes with no terms: leave one of the two out")
        self._check_arguments()
        model: Any = self.model
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        earlier = FusedHead.of(model)
        if isinstance(earlier, SFTHead):  # of an earlier trainer
            earlier.remove(model)
        elif earlier is not None:
            raise ValueError(
                f"model must not be patched, got a patched {type(model).__name__}; unpatch_model"
            )
        self._robust_head = SFTHead(model, terms, True, options)
        self._checked_training = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """TRL's own, of what the fused head found."""
        head = self._robust_head
        head.found, head.armed = None, True
        try:
            made = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
            if head.found is None:
                raise self._not_asked()
            if self.model.training and not self._checked_training:
                self._checked_training = True
                self._check_loss(made[0] if return_outputs else made, num_items_in_batch)
        finally:
            head.found, head.armed = None, False
        return made

    def _not_asked(self) -> RuntimeError:
        model: Any = self.accelerator.unwrap_model(self.model)
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        if FusedHead.of(model) is not self._robust_head:
            return RuntimeError(
                f"{type(model).__name__} was unpatched, or is another trainer's by now; make the "
                f"RobustSFTTrainer anew"
            )
        return _changed("SFTTrainer.compute_loss has not called the model with fused_lm_head=True")

    def _check_arguments(self) -> None:
        args: Any = self.args
        if args.loss_type != "nll":
            raise ValueError(
                f"loss_type must be left at 'nll', which stands for the terms here, got "
                f"{args.loss_type!r}; for 'dft' pass terms=ak.DFT()"
            )
        if args.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor must be 0, got {args.label_smoothing_factor}; "
                f"smoothing is a term, ak.CE(label_smoothing=...)"
            )
        parallel = getattr(self.accelerator, "parallelism_config", None)
        if parallel is not None and getattr(parallel, "sp_enabled", False):
            raise ValueError(
                "sequence parallelism (sp_size > 1) reduces the model's own loss over ranks; leave "
                "it out, or shard the batch otherwise"
            )

    @torch.no_grad()
    def _check_loss(self, loss: Tensor, num_items: Tensor | int | None) -> None:
        """Whether TRL made of the sum over tokens what it makes of log-probabilities."""
        found = self._robust_head.found
        assert found is not None
        assert found.log_probs is not None
        assert found.label_mask is not None
        count = found.label_mask.sum() if num_items is None else num_items
        wanted = -found.log_probs.sum() / torch.as_tensor(count, device=loss.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items is not None:
            wanted = wanted * (self.accelerator.num_processes // self.get_tp_size())
        if found.aux_loss is not None:
            steps = 1 if num_items is None else self.current_gradient_accumulation_steps
            wanted = wanted + self.router_aux_loss_coef * found.aux_loss / steps
        # Relative alone: at many classes some losses are 1e-5.
        if not torch.allclose(loss, wanted.to(loss), rtol=_CLOSE, atol=1e-12, equal_nan=True):
            raise _changed(
                f"SFTTrainer.compute_loss made {loss.item()} of token losses that stand for "
                f"{wanted.item()}"
            )


class SFTHead(FusedHead):
    """What a model has that ``RobustSFTTrainer`` trains: it answers ``fused_lm_head=True``.

    Only inside that trainer's ``compute_loss``, when it is ``armed``: to all others, such as a
    trainer that comes later, the model is what it was.
    """

    tells = False

    def __init__(
        self,
        model: Any,
        terms: Term | Terms,
        fuse_in_eval: bool,
        options: Mapping[str, Any],
    ) -> None:
        missing = [name for name in _FOUND if name not in _names_of_output()]
        if missing:
            raise _changed(f"FusedCausalLMOutput has no {' and no '.join(missing)}")
        super().__init__(model, terms, fuse_in_eval, options)
        self.armed = self.asked = False
        self.found: FusedCausalLMOutput | None = None
        self._loss: Tensor | None = None
        self._numbers: dict[str, Tensor] = {}

    def checked_name(self, model: Any) -> str:
        """The name of the model's class, whose forward is TRL's now."""
        check_loss_function(model)
        return type(model).__name__

    def make_loss(self, terms: Term | Terms, options: Mapping[str, Any]) -> ItemLoss:
        """One whose sum comes with what TRL's metrics are made of."""
        made, found = super().make_loss(terms, options), ("entropy", "argmax")
        made.total = LinearRobustLoss(
            self.head, terms, reduction="sum", return_aux=found, **options
        )
        return made

    def before_model(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Whether TRL's trainer asks; TRL's own forward is not told."""
        self.asked = self.armed and bool(kwargs.pop("fused_lm_head", False))
        self._loss, self._numbers = None, {}
        if self.asked:
            super().before_model(model, args, kwargs)
        else:
            self.active, self.hidden = False, None
        return args, kwargs

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of these terms, or the model's own where the trainer does not ask."""
        return super().__call__(*args, **kwargs) if self.armed else ForCausalLMLoss(*args, **kwargs)

    def compute(self, rows: Tensor, target: Tensor, num_items: Tensor | int | None) -> Tensor:
        """The sum of the losses of tokens; what else was found is kept for the output."""
        mask = target != _IGNORE
        if not torch.compiler.is_compiling():  # of prompts and padding there may be much
            rows, target = rows[mask], target[mask]
        counted = target != _IGNORE
        criterion = self.loss.total
        if criterion.weight is not None and criterion.weight.device != rows.device:
            criterion.weight = criterion.weight.to(rows.device)
        loss, aux = criterion(rows, target)
        self._loss = loss
        self._numbers = {
            "log_probs": -loss.unsqueeze(0),
            "entropy": aux.entropy.detach(),
            "is_top1": (aux.argmax == target) & counted,
            "label_mask": mask,
        }
        return loss

    def after_model(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """The loss and the metrics in the place of the model's output."""
        made = super().after_model(model, args, kwargs, output)
        if not self.asked or output is None:
            return made
        self.asked = False
        aux_loss, loss, numbers = made.get("aux_loss"), self._loss, self._numbers
        self._loss, self._numbers = None, {}
        compiling = torch.compiler.is_compiling()
        if aux_loss is None and made.loss is not loss and not compiling:
            raise ValueError(
                f"{self.name} adds something of its own to its loss, which SFTTrainer leaves out; "
                f"train with transformers.Trainer and patch_model"
            )
        self.found = FusedCausalLMOutput(aux_loss=aux_loss, **numbers)
        return self.found


def _taken_out(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords that are the loss's; the others stay."""
    names = set(LinearOptions.__annotations__)
    both = sorted(names.intersection(inspect.signature(SFTTrainer.__init__).parameters))
    if both:
        raise _changed(f"SFTTrainer takes {', '.join(both)}, which are keywords of the loss")
    options = {name: kwargs.pop(name) for name in names.intersection(kwargs)}
    if "ignore_index" in options:
        raise TypeError("ignore_index is no option here: TRL's is -100")
    if "skip_ignored" in options:
        raise TypeError("skip_ignored is no option here: ignored tokens are left out in any case")
    return options


def _names_of_output() -> set[str]:
    return {field.name for field in fields(FusedCausalLMOutput)}
