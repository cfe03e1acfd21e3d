"""The entropy regulariser of ANL-CE-ER: a term over the batch, not over a row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anl_kernels import checks
from anl_kernels.backends.choice import REFERENCE, choose_backend
from anl_kernels.distributed.collectives import check_group
from anl_kernels.distributed.local_parts import AmongDTensors, is_dtensor, of_rows, whole_rows
from anl_kernels.labels import is_ignored
from anl_kernels.losses import RobustLoss
from anl_kernels.numbers import as_number, shown
from anl_kernels.regularisers.entropy_operators import EntropyFunction, EntropySpec, definition
from anl_kernels.rows.loss import Aux
from anl_kernels.tracing import forward_mode, recorded_for_others, transforming

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def entropy_regulariser(
    logits: Tensor,
    *,
    counted: Tensor | None = None,
    min_prob: float = 1e-7,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """``log K + sum_k q_k log q_k``, with q the mean over rows of the clamped probabilities.

    It is 0 where the batch's predictions are spread evenly over the classes, and log K where all
    are one class. Every probability is clamped to [min_prob, 1 - min_prob], then averaged over the
    rows that count; q is that over its sum, clamped at min_prob again. One read of the logits, or
    two; its gradient is one read and one write. No tensor of their size is made but the gradient.

    Args:
        logits: (K,), (N, K) or (N, K, d1, ...); float64, float32, float16 or bfloat16; any
            strides. A class with a logit of -inf has probability 0, and counts in K. A ``DTensor``
            may be sharded on rows, over one dimension of its mesh: q is of the rows of all ranks,
            and the gradient that of one loss.
        counted: bool, of the logits' shape less K: the rows that count, such as
            ``target != -100``; all if None. The others may hold anything, and have gradient 0. If
            no row counts the result is 0, and so is its gradient.
        min_prob: the clamp; above 0 and below 1/K.
        process_group: the ranks of data parallelism that share the batch, each with its own rows:
            q is then of all ranks' rows, and the result the same on every rank. The gradient is
            right where the ranks' gradients are averaged, as ``DistributedDataParallel`` and FSDP
            do, if every rank adds the same term to its loss. All ranks must call forward and
            backward. None: q is of this process's rows alone.

    Returns:
        0-d, float32 (float64 for float64 logits). Differentiable twice.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or device does not fit, or min_prob is out of range.
        RuntimeError: the backend asked for with :func:`use_backend` cannot run.

    Source: Ye et al., "Active Negative Loss: A Robust Framework for Learning with Noisy Labels",
    2024, as its official code has it.
    """
    if is_dtensor(logits):
        return _of_dtensor(logits, counted, min_prob, process_group)
    min_prob = _check(logits, counted, min_prob, process_group)
    recorded = forward_mode() or recorded_for_others()
    if recorded or torch._C._are_functorch_transforms_active():
        return definition(logits, counted, min_prob, process_group)
    spec = _spec(logits, min_prob, process_group)
    if torch.compiler.is_compiling():
        return torch.ops.anl_kernels.entropy(logits, counted, *spec)[0]
    return EntropyFunction.apply(logits, counted, False, spec)[1]


class EntropyRegularisedLoss(nn.Module):
    """A loss plus ``weight`` times :func:`entropy_regulariser` over the rows that it counts.

    With kernels, one gradient of the logits' size lives in a step, as with the loss alone: the
    regulariser's is added to the loss's in place. (Not in compiled code, nor on the reference
    backend.)

    Args:
        criterion: a loss on logits, with any terms and options but ``reduction="none"``,
            ``inplace=True``, ``process_group`` and ``num_classes``. Rows with its
            ``ignore_index`` do not count in the regulariser; weights of rows do not enter it.
        weight: lambda, the factor on the regulariser; the paper has 2 for CIFAR-10 and 0.01 for
            CIFAR-100.
        min_prob: as in :func:`entropy_regulariser`.
        process_group: ranks that share the batch, as in :func:`entropy_regulariser`. The
            criterion remains the mean over this rank's rows. Without it, the regulariser is one
            of each rank's rows; so it is of each micro-batch where gradients are accumulated.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the criterion has an option that it may not have, or a number is out of range.

    Example:
        >>> criterion = ak.EntropyRegularisedLoss(ak.ActiveNegativeLoss(5.0, 5.0), weight=2.0)
        >>> loss = criterion(logits, target)
    """

    def __init__(
        self,
        criterion: RobustLoss,
        weight: float,
        min_prob: float = 1e-7,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        _check_criterion(criterion)
        factor = as_number(weight)
        if factor is None or not math.isfinite(factor):
            raise ValueError(f"weight must be a finite number, got {shown(weight)}")
        if process_group is not None:
            check_group(process_group)
        self.criterion = criterion
        self.weight = float(factor)
        self.min_prob = _check_min_prob(min_prob, 1)
        self.process_group = process_group

    def forward(
        self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Aux]:
        """The sum, 0-d; with the criterion's ``return_aux`` a pair of it and its :class:`Aux`.

        Shapes and errors are those of :func:`anl_kernels.robust_loss` and
        :func:`entropy_regulariser`.
        """
        if not is_dtensor(logits):
            _check(logits, None, self.min_prob, self.process_group)
        checks.check_target(target, logits)
        counted = ~is_ignored(target, self.criterion.options.get("ignore_index", -100))
        if _hands_its_gradient_over(self.criterion, logits):
            spec = _spec(logits, self.min_prob, self.process_group)
            logits, entropy = EntropyFunction.apply(logits, counted, True, spec)
        else:
            entropy = entropy_regulariser(
                logits, counted=counted, min_prob=self.min_prob, process_group=self.process_group
            )
        result = self.criterion(logits, target, sample_weight)
        loss, *aux = result if isinstance(result, tuple) else (result,)
        total = loss + self.weight * entropy
        return (total, *aux) if aux else total

    def extra_repr(self) -> str:
        """The numbers."""
        group = "" if self.process_group is None else ", process_group=..."
        return f"weight={self.weight:g}, min_prob={self.min_prob:g}{group}"


def _of_dtensor(
    logits: Tensor, counted: Tensor | None, min_prob: float, group: ProcessGroup | None
) -> Tensor:
    here, rows = whole_rows("logits", logits, checks.class_dim(logits), group)
    groups = [] if rows is None else rows.groups
    if len(groups) > 1:
        raise ValueError(
            f"logits must have their rows spread over one dimension of a mesh, got a DTensor with "
            f"placements {logits.placements}; call logits.redistribute first"  # type: ignore[attr-defined]
        )
    group = groups[0] if groups else None
    counted = None if counted is None else of_rows("counted", counted, rows)
    value = entropy_regulariser(here, counted=counted, min_prob=min_prob, process_group=group)
    if group is not None:
        # The gradient is for ranks with losses of their own, which are then averaged. This is one.
        constant = value.detach()
        value = constant + (value - constant) / group.size()
    return AmongDTensors.apply(value)


def _spec(logits: Tensor, min_prob: float, group: ProcessGroup | None) -> EntropySpec:
    backend = choose_backend(logits)
    return EntropySpec(min_prob, backend, "" if group is None else group.group_name)


def _hands_its_gradient_over(criterion: RobustLoss, logits: Tensor) -> bool:
    """Whether the gradient that the loss gives its logits is memory that nobody else reads.

    Kernels make it for this one use. What others make of it, autograd on the reference's formulas
    or a subclass, may be shared, expanded, or kept by a hook.
    """
    wanted = torch.is_grad_enabled() and logits.requires_grad
    if not wanted or transforming() or is_dtensor(logits):
        return False
    if type(criterion).forward is not RobustLoss.forward or _has_hooks(criterion):
        return False
    return choose_backend(logits, criterion.current_terms()) != REFERENCE


def _has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module calls anything else, which may see or replace its gradients."""
    own = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in own) or any(
        getattr(nn.modules.module, f"_global{name}") for name in own
    )


def _check(
    logits: Tensor, counted: Tensor | None, min_prob: float, group: ProcessGroup | None
) -> float:
    """Raise unless the arguments fit; ``min_prob`` as Python's float."""
    checks.check_floating_logits(logits)
    dim = checks.class_dim(logits)
    num_classes = checks.check_num_classes(None, logits.shape[dim], "logits", logits)
    min_prob = _check_min_prob(min_prob, num_classes)
    if counted is not None:
        shape = logits.shape[:dim] + logits.shape[dim + 1 :]
        checks.check_mask("counted", counted, shape, logits)
    if group is not None:
        check_group(group)
    return min_prob


def _check_min_prob(min_prob: float, num_classes: int) -> float:
    clamp = as_number(min_prob)
    # Compared, not asked with math.isfinite, which torch.compile(dynamic=True) cannot trace.
    if clamp is None or not 0 < clamp < min(0.5, 1 / num_classes):
        raise ValueError(
            f"min_prob must be a float above 0, below 0.5 and below 1/K, the probability of a "
            f"class at uniform logits, which is {1 / num_classes:g} here; got {shown(min_prob)}"
        )
    return float(clamp)


def _check_criterion(criterion: RobustLoss) -> None:
    if not isinstance(criterion, RobustLoss):
        raise TypeError(
            f"criterion must be an ak.RobustLoss, got {type(criterion).__name__}; beside any other "
            f"loss add weight * ak.entropy_regulariser(logits) yourself"
        )
    options = criterion.options
    if options.get("reduction", "mean") == "none":
        raise ValueError(
            "criterion has reduction='none', and the regulariser is one number for the batch: make "
            "it reduction='mean' or 'sum', or add weight * ak.entropy_regulariser(logits) yourself"
        )
    if options.get("inplace"):
        raise ValueError(
            "criterion has inplace=True, whose gradient overwrites the logits, which the "
            "regulariser's gradient is made from: make it inplace=False"
        )
    for name in ("process_group", "num_classes"):
        if options.get(name) is not None:
            raise ValueError(
                f"criterion has {name}={options[name]!r}; the regulariser needs all classes of a "
                f"row, and no others, in its logits: make it {name}=None"
            )
