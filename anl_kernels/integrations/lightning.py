"""Lightning: what these losses ask of the training loop beside themselves, as callbacks.

A loss itself needs nothing: call it in ``training_step`` in the place of ``F.cross_entropy``. Runs
with Lightning 2 under either of its names, ``lightning`` and ``pytorch_lightning``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from anl_kernels.numbers import as_int
from anl_kernels.recipes.truncated import TruncatedGCE
from anl_kernels.regularisers.l1 import add_l1_grad_


def _lightning() -> Any:
    """The package under the name that the program uses, if it has imported one."""
    names = sorted(("lightning.pytorch", "pytorch_lightning"), key=lambda n: n not in sys.modules)
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reason = error
    raise ImportError(
        f"anl_kernels.integrations.lightning needs Lightning: "
        f"pip install anl-kernels[lightning] ({reason})"
    )


_Callback: Any = _lightning().Callback


class L1Penalty(_Callback):
    """Adds the gradient of ``factor * sum |theta|`` before each step, and before clipping.

    With ``Trainer(gradient_clip_val=5.0)`` and no weight decay that is the recipe of ANL: the norm
    that is clipped has the penalty in it, which enters once a step, however many batches were
    accumulated. (:class:`anl_kernels.L1Hook` comes after Lightning's clipping, and refuses steps
    with a closure, as Lightning's are.)

    Args:
        factor: of the penalty over the parameters of each optimiser, at least 0, such as
            ``presets.get("anl_ce", "cifar10").l1``.

    Raises:
        ValueError: (by the first step) factor is negative or infinite.
        RuntimeError: (by a step) a GradScaler leaves the unscaling to a fused optimiser.

    Example:
        >>> Trainer(callbacks=[L1Penalty(5e-5)], gradient_clip_val=5.0)
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def on_before_optimizer_step(
        self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        """Add the gradient, which Lightning has unscaled and not yet clipped."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise RuntimeError(
                "L1Penalty needs gradients that are unscaled, which a GradScaler leaves to a fused "
                "optimizer: give that fused=False, or the Trainer precision='bf16-mixed'"
            )
        add_l1_grad_((p for group in optimizer.param_groups for p in group["params"]), self.factor)


class RefreshTruncatedGCE(_Callback):
    """Refreshes the weights of a :class:`anl_kernels.recipes.TruncatedGCE` as epochs begin.

    Args:
        criterion: the loss that the LightningModule trains with.
        loader: gives ``(x, y, index)`` of the whole training set, on every rank; ``forward`` of the
            LightningModule makes logits of ``x``.
        first: the number of epochs before the first refresh: 40 for CIFAR-10 in published runs, 80
            for CIFAR-100.
        every: the number of epochs between refreshes.

    Raises:
        ValueError: first is negative, or every is not positive.
    """

    def __init__(
        self,
        criterion: TruncatedGCE,
        loader: Iterable[tuple[Tensor, Tensor, Tensor]],
        first: int = 40,
        every: int = 10,
    ) -> None:
        begin, period = as_int(first), as_int(every)
        if begin is None or period is None or begin < 0 or period < 1:
            raise ValueError(
                f"first must be at least 0 and every at least 1, got {first!r} and {every!r}"
            )
        self.criterion, self.loader, self.first, self.every = criterion, loader, begin, period

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Refresh, if it is time."""
        passed = trainer.current_epoch - self.first
        if passed >= 0 and passed % self.every == 0:
            self.criterion.refresh_from(pl_module, self.loader)
