"""Truncated generalised cross entropy: GCE over the samples that the model still believes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from anl_kernels.distributed.local_parts import is_dtensor
from anl_kernels.functional import robust_loss
from anl_kernels.labels import is_ignored
from anl_kernels.log_probs import log_prob
from anl_kernels.losses import Criterion
from anl_kernels.options import LossOptions
from anl_kernels.recipes.samples import check_index, check_num_samples, check_share
from anl_kernels.rows.prepare import row_scale_of
from anl_kernels.terms import GCE


class TruncatedGCE(Criterion):
    """Truncated GCE: ``w_i ((1 - p_y^q) / q - (1 - k^q) / q)`` with w_i in {0, 1} for each sample.

    A sample counts while its loss is below that of probability k, that is while p_y > k. The
    weights are 1 at first, and are refreshed every few epochs from a model's predictions:
    published runs do so every 10 epochs from epoch 40 (CIFAR-10, of 120) or 80 (CIFAR-100), with
    k = 0.5. The constant keeps a sample's loss below 0 where it counts, and has no gradient.

    Args:
        num_samples: the size of the training set.
        q: exponent of GCE.
        k: the probability below which a sample is left out, in (0, 1).
        **options: as for :class:`anl_kernels.RobustLoss`, without ``return_aux``. ``"mean"``
            divides by the number of samples in the batch, those of weight 0 included.

    Attributes:
        sample_weight: (num_samples,) float32 buffer, in the ``state_dict``.

    Raises:
        ValueError: num_samples, q or k has a value it cannot have, or return_aux is given.
        TypeError: an option is unknown.

    Source: Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks
    with Noisy Labels", NeurIPS 2018, section 3.3. The schedule is that of its public PyTorch code
    (AlanChou/Truncated-Loss), which refreshes from the model that was best so far.

    Example:
        >>> criterion = recipes.TruncatedGCE(len(train_set))
        >>> loss = criterion(model(x), y, index)
        >>> criterion.refresh_from(model, loader)  # every 10 epochs; over all (x, y, index)
    """

    sample_weight: Tensor

    def __init__(
        self, num_samples: int, q: float = 0.7, k: float = 0.5, **options: Unpack[LossOptions]
    ) -> None:
        k, term = check_share("k", k), GCE(q)
        if options.get("return_aux"):
            raise ValueError(
                f"return_aux must be False, got {options['return_aux']!r}; ak.robust_loss has it"
            )
        super().__init__(term, dict(options))
        self.k = k
        self.loss_at_k = (1 - k**term.q) / term.q
        self.register_buffer("sample_weight", torch.ones(check_num_samples(num_samples)))

    def forward(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """The loss.

        Args:
            logits: as for :func:`anl_kernels.robust_loss`.
            target: the given labels.
            index: int64 of the target's shape: the place of each row's sample in the training set.

        Raises:
            TypeError, ValueError, IndexError: index is not that; or as
                :func:`anl_kernels.robust_loss`.
        """
        check_index(index, target, self.sample_weight.numel(), self.sample_weight)
        kept = self.sample_weight[index]
        loss = robust_loss(
            logits,
            target,
            self.terms,
            weight=self.weight,
            sample_weight=kept,
            **self.current_options(),
        )
        reduction = self.options.get("reduction", "mean")
        ignore_index = self.options.get("ignore_index", -100)
        scale = row_scale_of(
            logits,
            target,
            None,
            ignore_index=ignore_index,
            reduction=reduction,
            weight=self.weight,
            sample_weight=kept,
        )
        assert isinstance(loss, Tensor)  # aux was refused
        return loss - self.loss_at_k * (scale if reduction == "none" else scale.sum())

    @torch.no_grad()
    def refresh(self, logits: Tensor, target: Tensor, index: Tensor) -> None:
        """Set the weights of some samples: 1 where ``p_y > k``, else 0, as where they are ignored.

        Args:
            logits: of the model in eval mode, in the shapes of a call.
            target: the given labels.
            index: the samples' places.

        Raises:
            TypeError, ValueError, IndexError: as a call.
        """
        check_index(index, target, self.sample_weight.numel(), self.sample_weight)
        known = {"ignore_index", "process_group", "num_classes"} & self.options.keys()
        log_p = log_prob(logits, target, **{name: self.options[name] for name in known})
        if is_dtensor(log_p):
            log_p = log_p.full_tensor()  # type: ignore[attr-defined]
        counted = ~is_ignored(target, self.options.get("ignore_index", -100))
        kept = counted & (log_p > math.log(self.k))
        self.sample_weight[index] = kept.to(self.sample_weight.dtype)

    @torch.no_grad()
    def refresh_from(
        self, model: nn.Module, loader: Iterable[tuple[Tensor, Tensor, Tensor]]
    ) -> None:
        """Set the weights of all samples of a loader from a model's predictions.

        The model runs in eval mode and without gradients; each of its modules is left in the mode
        it was in. Under data parallelism let every rank refresh from the whole training set, since
        samples change ranks between epochs.

        Args:
            model: maps a batch of inputs to logits.
            loader: gives ``(x, y, index)``, tensors, which are moved to this module's device.

        Raises:
            TypeError, ValueError, IndexError: as a call.
        """
        device = self.sample_weight.device
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            for batch in loader:
                x, target, index = (tensor.to(device) for tensor in batch)
                self.refresh(model(x), target, index)
        finally:
            for module, mode in modes:
                module.training = mode

    def extra_repr(self) -> str:
        """The number of samples, the threshold, the term and the options."""
        return f"num_samples={self.sample_weight.numel()}, k={self.k}, {super().extra_repr()}"
