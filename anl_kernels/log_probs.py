"""Log-probabilities of given classes, and losses that are a user's function of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anl_kernels import checks
from anl_kernels.checks import class_dim
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.distributed.local_parts import of_all, of_rows
from anl_kernels.distributed.row_shards import RowShards
from anl_kernels.interface import accumulator_dtype
from anl_kernels.labels import is_ignored
from anl_kernels.options import Reduction, check_class_count, check_ignore_index, check_reduction
from anl_kernels.rows.labels import label_scale
from anl_kernels.rows.log_probs import LOG_P, log_prob_of, log_probs_of
from anl_kernels.rows.prepare import local_logits, prepare
from anl_kernels.tracing import transforming

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_NEUTRAL = math.log(0.5)


def log_prob(
    logits: Tensor,
    classes: Tensor,
    *,
    ignore_index: int = -100,
    process_group: ProcessGroup | ClassShards | None = None,
    num_classes: int | None = None,
) -> Tensor:
    """Log-probability of given classes: ``logits.log_softmax(dim).gather(dim, classes)``, fused.

    Forward reads the logits and keeps a few floats a row; backward reads them again and writes
    their gradient. Nothing else of their size is made, however many classes are asked for.

    Args:
        logits: (K,), (N, K) or (N, K, d1, ...); float64, float32, float16 or bfloat16; any
            strides.
        classes: int64 or int32. One for each row: of the logits' shape less K. Or M for each row:
            of the logits' shape with M >= 1 in the place of K, (N, M, d1, ...), in any order;
            a class may occur in a row more than once.
        ignore_index: an entry that stands for no class: its log-probability is 0, without gradient.
        process_group: the ranks that share the classes, as for :func:`robust_loss`; for one class
            a row.
        num_classes: as for :func:`robust_loss`.

    Returns:
        Of the shape of ``classes``, float32 (float64 for float64 logits). The relative error is
        that of the arithmetic, also close to 0: ``-torch.expm1(log_p)`` is 1 - p with its digits.
        Differentiable, twice and more (with several classes on all of PyTorch's terms: gradients
        of gradients hold matrices of the logits' size). A ``DTensor`` if the logits are one with
        rows over ranks.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit, or ranks share the classes and there are several
            classes a row.
        IndexError: a class is outside [0, K) and not ``ignore_index``. On a GPU only inside
            :func:`check_labels`; otherwise the row's log-probabilities are NaN there.
        RuntimeError: the backend asked for with :func:`use_backend` cannot run.

    Example:
        >>> log_p = ak.log_prob(logits, target)  # (N,)
        >>> others = ak.log_prob(logits, torch.randint(num_classes, (len(logits), 5)))  # (N, 5)
    """
    checks.check_floating_logits(logits)
    checks.check_dense("classes", classes)
    ignore_index = check_ignore_index(ignore_index)
    dim = class_dim(logits)
    logits, shards, rows, num_classes = local_logits(logits, process_group, num_classes)
    if rows is not None and isinstance(classes, Tensor) and classes.dim() == logits.dim():
        rows = rows.with_classes(dim, classes.shape[dim])
    classes = of_rows("classes", classes, rows)
    several = _check_classes(classes, logits)
    acc = accumulator_dtype(logits.dtype)
    one = label_scale(classes, num_classes, ignore_index, acc, argument="classes")
    made = log_probs_of(logits, classes, several, ignore_index, shards)
    if transforming():
        made = made * one  # which keeps the check of the classes
    return made if rows is None else rows.spread(made)


class LogProbLoss(nn.Module):
    """A loss that is a user's function of the target's log-probability alone: its *head*.

    The kernels make log p_y and the gradient of the logits; the head is plain PyTorch on one number
    a row, and what it learns receives its gradient. GCE as a head, with an order that is learned::

        class LearnedGCE(nn.Module):
            def __init__(self):
                super().__init__()
                self.raw = nn.Parameter(torch.tensor(0.0))

            def forward(self, log_p):
                q = F.softplus(self.raw)
                return -torch.expm1(q * log_p) / q

    1 - p_y is ``-torch.expm1(log_p)``: with its digits, where ``1 - log_p.exp()`` has none left.

    Args:
        head: maps log p_y of any shape, float32 (float64 for float64 logits), to losses of the same
            shape and any floating dtype; a function, or a module, which becomes a submodule. What
            it says of ignored rows, where it is given log(1/2), does not count.
        weight: (K,) factors on the loss of rows with each label, as for :func:`robust_loss`;
            becomes a buffer.
        ignore_index: label of rows that do not count.
        reduction: "mean", "sum" or "none", as for :func:`robust_loss`.
        process_group: as for :func:`robust_loss`.
        num_classes: as for :func:`robust_loss`.

    Raises:
        TypeError: head cannot be called, ignore_index is no int, or weight is not floating.
        ValueError: reduction is unknown, num_classes is no int above 0, or weight requires grad.

    Example:
        >>> criterion = ak.LogProbLoss(LearnedGCE())
        >>> loss = criterion(logits, target)
    """

    weight: Tensor | None

    def __init__(
        self,
        head: Callable[[Tensor], Tensor],
        *,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        process_group: ProcessGroup | ClassShards | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if not callable(head):
            raise TypeError(
                f"head must map log-probabilities to losses, got {head!r}; pass a function or a "
                f"module"
            )
        self.head = head
        self.register_buffer("weight", checks.check_fixed_weight(weight))
        self.ignore_index = check_ignore_index(ignore_index)
        self.reduction = check_reduction(reduction)
        self.process_group = process_group
        self.num_classes = check_class_count(num_classes)

    def forward(
        self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor:
        """The loss.

        Args:
            logits: (K,), (N, K) or (N, K, d1, ...), as for :func:`robust_loss`.
            target: class indices, of the logits' shape less K.
            sample_weight: factors on the loss of each row, of the target's shape; may require grad.

        Returns:
            Float32 (float64 for float64 logits): 0-d, or of the target's shape for "none".

        Raises:
            ValueError: the head gives another shape than it is given, or as :func:`robust_loss`.
            TypeError, IndexError, RuntimeError: as :func:`robust_loss`.
        """
        checks.check_floating_logits(logits)
        made = prepare(
            logits,
            target,
            LOG_P,
            process_group=self.process_group,
            num_classes=self.num_classes,
            ignore_index=self.ignore_index,
            weight=self.weight,
            sample_weight=sample_weight,
            reduction=self.reduction,
            class_scale=1.0,
        )
        logits, target, rows = made.local.logits, made.target, made.local.rows
        log_p = log_prob_of(logits, target, self.ignore_index, made.local.shards)
        ignored = is_ignored(target, self.ignore_index)
        # A head may have a pole at p = 1, whose gradient no factor of 0 would make 0.
        losses = self._losses(log_p.masked_fill(ignored, _NEUTRAL), rows)
        if not isinstance(losses, Tensor) or losses.shape != log_p.shape:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"head must give one loss for each log-probability, of shape "
                f"{tuple(log_p.shape)}, got {got}; leave sums and means to reduction"
            )
        # A head under autocast, or of its own dtype, must not choose that of the sum.
        scaled = losses.to(log_p.dtype).masked_fill(ignored, 0) * made.row_scale
        if self.reduction == "none":
            return scaled if rows is None else rows.spread(scaled)
        return scaled.sum() if rows is None else rows.total(scaled.sum())

    def _losses(self, log_p: Tensor, rows: RowShards | None) -> Tensor:
        """What the head says; what it learns, it learns of the rows of all ranks."""
        if rows is None:
            return self.head(log_p)
        if isinstance(self.head, nn.Module):
            pairs = self.head.named_parameters()
            shared = {name: of_all(f"head.{name}", parameter, rows) for name, parameter in pairs}
            return torch.func.functional_call(self.head, shared, (log_p,))
        if torch.is_grad_enabled() and self.head(log_p.detach()).requires_grad:
            raise ValueError(
                "head must be an nn.Module where ranks share the rows of the logits and it learns "
                "something: what a function learns would receive the gradient of this rank's rows"
            )
        return self.head(log_p)

    def extra_repr(self) -> str:
        """The options, and a head that is no module."""
        head = "" if isinstance(self.head, nn.Module) else f"head={self.head!r}, "
        return f"{head}ignore_index={self.ignore_index}, reduction={self.reduction!r}"


def _check_classes(classes: Tensor, logits: Tensor) -> bool:
    """Whether there are several classes a row; raise TypeError or ValueError if neither."""
    dim, shape = class_dim(logits), logits.shape
    one = shape[:dim] + shape[dim + 1 :]
    several = isinstance(classes, Tensor) and classes.dim() == logits.dim()
    if several and classes.shape[dim] > 0:
        one = shape[:dim] + classes.shape[dim : dim + 1] + shape[dim + 1 :]
    checks.check_labels_of(classes, one, "logits", logits, "classes")
    return several
