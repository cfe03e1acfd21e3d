"""Negative learning: train on labels that a sample, in all likelihood, does not have."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from anl_kernels import checks
from anl_kernels.checks import class_dim
from anl_kernels.distributed.local_parts import is_dtensor
from anl_kernels.interface import accumulator_dtype
from anl_kernels.labels import is_ignored
from anl_kernels.log_probs import log_prob
from anl_kernels.numbers import as_int, shown
from anl_kernels.options import check_ignore_index
from anl_kernels.recipes.samples import check_index, check_num_samples, check_share
from anl_kernels.rows.labels import label_scale

Stage = Literal["nl", "selnl", "selpl"]


class NegativeLearning(nn.Module):
    """NLNL: ``-log(1 - p_k)`` for random classes k other than the given label, in three stages.

    "nl" trains on all samples. "selnl" does on those whose given label has a probability of at
    least 1/K. "selpl" takes cross entropy with the given label, of the samples whose label has at
    least ``threshold``. The published runs give the first two stages 720 epochs each on CIFAR-10,
    lr 0.02, and decide by the mean of a sample's last 10 probabilities: say ``num_samples`` for
    that. Without it, by the probability at hand.

    The loss of the negative stages is the sum over the drawn classes, times the weight of the given
    label, over the number of rows that count; that of "selpl" the weighted mean.

    Args:
        num_classes: K.
        num_negatives: classes drawn for each row, uniformly, with replacement: 1 in the published
            runs, 110 on CIFAR-100.
        class_frequency: (K,) how often each label is given in the training set, in any unit. Rows
            are weighted by the largest over that of their label; None for weights of 1.
        threshold: probability that "selpl" asks for, 0.5 in the published runs.
        num_samples: size of the training set, to remember probabilities by sample; the call then
            takes ``index``.
        history: how many of a sample's probabilities are remembered.
        floor: 1 - p_k is clamped here.
        ignore_index: label of rows that do not count.
        generator: of the classes that are drawn. It is not part of the ``state_dict``, and
            ``torch.compile`` takes none.
        stage: "nl", "selnl" or "selpl"; an attribute, to be set as training goes on.

    Raises:
        TypeError: ignore_index is no int, or generator no ``torch.Generator``.
        ValueError: another argument has a value it cannot have.

    Source: Kim et al., "NLNL: Negative Learning for Noisy Labels", ICCV 2019, and its code
    (ydkim1293/NLNL-Negative-Learning-for-Noisy-Labels), which sums and weighs so, and whose NaN
    for a batch without samples is 0 here.

    Example:
        >>> criterion = recipes.NegativeLearning(100, num_negatives=110, num_samples=len(train_set))
        >>> loss = criterion(model(x), y, index)
        >>> criterion.stage = "selnl"
    """

    weight: Tensor | None
    remembered: Tensor | None
    seen: Tensor | None

    def __init__(
        self,
        num_classes: int,
        num_negatives: int = 1,
        class_frequency: Tensor | None = None,
        *,
        threshold: float = 0.5,
        num_samples: int | None = None,
        history: int = 10,
        floor: float = 1e-5,
        ignore_index: int = -100,
        generator: torch.Generator | None = None,
        stage: Stage = "nl",
    ) -> None:
        super().__init__()
        num_classes = _check_count("num_classes", num_classes, 2)
        history = _check_count("history", history, 1)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, got {generator!r}")
        self.num_classes = num_classes
        self.num_negatives = _check_count("num_negatives", num_negatives, 1)
        self.threshold = check_share("threshold", threshold)
        self.floor = check_share("floor", floor)
        self.ignore_index = check_ignore_index(ignore_index)
        self.generator = generator
        self.stage = stage
        self.register_buffer("weight", _weight_of(class_frequency, num_classes))
        size = None if num_samples is None else check_num_samples(num_samples)
        self.register_buffer("remembered", None if size is None else torch.zeros(size, history))
        self.register_buffer("seen", None if size is None else torch.zeros(size, dtype=torch.int64))

    @property
    def stage(self) -> Stage:
        """What is being trained: "nl", "selnl" or "selpl"."""
        return self._stage

    @stage.setter
    def stage(self, stage: Stage) -> None:
        if not isinstance(stage, str) or stage not in get_args(Stage):
            raise ValueError(
                f"stage must be one of {', '.join(get_args(Stage))}, got {shown(stage)}"
            )
        self._stage = stage

    def forward(self, logits: Tensor, target: Tensor, index: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            logits: (K,), (N, K) or (N, K, d1, ...), as for :func:`anl_kernels.log_prob`.
            target: the given labels, of the logits' shape less K.
            index: with ``num_samples``, int64 of the target's shape: the place of each row's sample
                in the training set. In training mode its probability is remembered.

        Returns:
            0-d float32, or float64 for float64 logits; 0 where no row counts.

        Raises:
            ValueError: logits have not ``num_classes`` classes, or index is missing or not wanted.
            TypeError, IndexError: as :func:`anl_kernels.log_prob`, or index is not that.
        """
        one = self._check_call(logits, target, index)
        dim = class_dim(logits)
        counted = ~is_ignored(target, self.ignore_index)
        classes = target.unsqueeze(dim)
        if self.stage != "selpl":
            classes = torch.cat([classes, self._others(target, dim)], dim)
        # Whatever stands for "ignored" in the targets may be a class among those drawn.
        log_probs = log_prob(logits, classes.masked_fill(~counted.unsqueeze(dim), -100))
        log_p = log_probs.select(dim, 0)
        kept = counted & self._trusted(log_p.detach().exp(), counted, index)
        weight = torch.ones_like(log_p)
        if self.weight is not None:
            weight = self.weight[target.clamp(0, self.num_classes - 1)].to(log_p.dtype)
        weight = weight.masked_fill(~kept, 0)
        if self.stage == "selpl":
            losses, divisor = -log_p, weight.sum()
        else:
            negatives = log_probs.narrow(dim, 1, self.num_negatives)
            losses = -_log_complement(negatives, self.floor).sum(dim)
            divisor = kept.sum()
        losses = one * losses.masked_fill(~kept, 0) * weight
        return losses.sum() / divisor.masked_fill(divisor == 0, 1)

    def get_extra_state(self) -> Stage:
        """The stage, for ``state_dict``."""
        return self.stage

    def set_extra_state(self, state: Stage) -> None:
        """Take the stage from a ``state_dict``."""
        self.stage = state

    def extra_repr(self) -> str:
        """What is drawn, and the stage."""
        return (
            f"num_classes={self.num_classes}, num_negatives={self.num_negatives}, "
            f"threshold={self.threshold}, stage={self.stage!r}"
        )

    def _others(self, target: Tensor, dim: int) -> Tensor:
        """Classes that are not the given label, (N, num_negatives, d1, ...)."""
        shape = (*target.shape[:dim], self.num_negatives, *target.shape[dim:])
        device = self.generator.device if self.generator is not None else target.device
        shift = torch.randint(
            1, self.num_classes, shape, generator=self.generator, device=device, dtype=target.dtype
        )
        return (target.unsqueeze(dim) + shift.to(target.device)) % self.num_classes

    def _trusted(self, p_y: Tensor, counted: Tensor, index: Tensor | None) -> Tensor:
        """Which rows the stage takes; remembers the probabilities of those that are counted."""
        least = {"nl": 0.0, "selnl": 1 / self.num_classes, "selpl": self.threshold}[self.stage]
        if self.remembered is None or self.seen is None or index is None:
            return p_y >= least
        history = self.remembered.shape[1]
        seen = self.seen[index]
        mean = self.remembered[index].sum(-1) / seen.clamp(1, history)
        if self.training:
            place = seen % history
            newest = torch.where(counted, p_y.to(mean.dtype), self.remembered[index, place])
            self.remembered[index, place] = newest
            self.seen[index] = seen + counted
        return torch.where(seen == 0, p_y, mean) >= least

    def _check_call(self, logits: Tensor, target: Tensor, index: Tensor | None) -> Tensor:
        """Check the arguments; the factor of 1 that keeps the check of labels in compiled code."""
        checks.check_floating_logits(logits)
        for name, tensor in (("logits", logits), ("target", target)):
            if is_dtensor(tensor):
                raise TypeError(
                    f"{name} must be a plain tensor, got a DTensor; every rank draws classes of "
                    f"its own, so let each have whole rows, and average the ranks' gradients"
                )
        checks.check_target(target, logits)
        here = logits.shape[class_dim(logits)]
        if here != self.num_classes:
            raise ValueError(
                f"logits must have num_classes = {self.num_classes} classes, got {here} in shape "
                f"{tuple(logits.shape)}"
            )
        acc = accumulator_dtype(logits.dtype)
        one = label_scale(target, self.num_classes, self.ignore_index, acc)
        if (index is None) != (self.remembered is None):
            raise ValueError(
                "index must be given to the call if, and only if, num_samples was given: it is the "
                "place of each row's sample in the training set"
            )
        if index is not None and self.remembered is not None:
            check_index(index, target, len(self.remembered), self.remembered)
        return one


def _log_complement(log_p: Tensor, floor: float) -> Tensor:
    """``log(max(1 - p, floor))`` of log p, with the digits of 1 - p and of its gradient."""
    large = log_p > -math.log(2)
    # The other branch's poles must not come into a gradient.
    of_large = -torch.expm1(log_p.masked_fill(~large, -1))
    of_small = torch.log1p(-log_p.masked_fill(large, -1).exp())
    return torch.where(large, of_large.clamp(min=floor).log(), of_small)


def _weight_of(frequency: Tensor | None, num_classes: int) -> Tensor | None:
    """The weight of each label: the largest frequency over its own, 0 for one that is not given."""
    if frequency is None:
        return None
    if not isinstance(frequency, Tensor) or frequency.shape != (num_classes,):
        got = tuple(frequency.shape) if isinstance(frequency, Tensor) else type(frequency).__name__
        raise ValueError(
            f"class_frequency must be a tensor of shape ({num_classes},), as torch.bincount makes "
            f"it of all labels, got {got}"
        )
    if (frequency < 0).any() or not (frequency > 0).any():
        raise ValueError(f"class_frequency must not be negative, nor 0 everywhere, got {frequency}")
    weight = frequency.max() / frequency.to(torch.get_default_dtype())
    return weight.masked_fill(frequency == 0, 0)


def _check_count(name: str, value: int, least: int) -> int:
    count = as_int(value)
    if count is None or count < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {shown(value)}")
    return count
