"""Log-probabilities of given classes, and losses that are a user's function of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anl_kernels import checks
from anl_kernels.backends.choice import CPU, REFERENCE, choose_backend
from anl_kernels.backends.operators import eager
from anl_kernels.checks import class_dim
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.distributed.local_parts import of_all, of_rows
from anl_kernels.distributed.row_shards import RowShards
from anl_kernels.interface import RowRequest, accumulator_dtype
from anl_kernels.labels import is_ignored
from anl_kernels.options import Reduction, check_class_count, check_ignore_index, check_reduction
from anl_kernels.rows.autograd import apply
from anl_kernels.rows.labels import label_scale
from anl_kernels.rows.loss import row_loss
from anl_kernels.rows.operators import Where
from anl_kernels.rows.prepare import local_logits, prepare
from anl_kernels.terms import CE
from anl_kernels.tracing import (
    forward_mode,
    only_formulas,
    plain_cpu,
    recorded_for_others,
    transforming,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_CE = 1.0 * CE()
_LOG_P = -1.0 * CE()
_NEUTRAL = math.log(0.5)
_FEW = 4  # times the classes asked for: a row of all is no more memory than there is then


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
    made = _of_classes(logits, classes, several, ignore_index, shards)
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
            _LOG_P,
            process_group=self.process_group,
            num_classes=self.num_classes,
            ignore_index=self.ignore_index,
            weight=self.weight,
            sample_weight=sample_weight,
            reduction=self.reduction,
            class_scale=1.0,
        )
        logits, target, rows = made.local.logits, made.target, made.local.rows
        log_p = _of_one_class(logits, target, self.ignore_index, made.local.shards)
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


def _of_classes(
    logits: Tensor, classes: Tensor, several: bool, ignore_index: int, shards: ClassShards | None
) -> Tensor:
    """Log-probabilities of the classes of each row, arguments checked."""
    dim = class_dim(logits)
    if not several:
        return _of_one_class(logits, classes, ignore_index, shards)
    if classes.shape[dim] == 1:
        one = classes.squeeze(dim)
        return _of_one_class(logits, one, ignore_index, shards).unsqueeze(dim)
    if shards is not None:
        raise ValueError(
            f"classes must be one for each row where ranks share the classes of the logits, got "
            f"shape {tuple(classes.shape)}; call log_prob once for each"
        )
    backend = choose_backend(logits, _CE)
    if backend == REFERENCE and (only_formulas() or recorded_for_others()):
        return _by_formula(logits, classes, ignore_index)
    return apply(_LogProbsFunction, logits, classes, ignore_index, backend)[0]


def _of_one_class(
    logits: Tensor, classes: Tensor, ignore_index: int, shards: ClassShards | None
) -> Tensor:
    """Log-probability of one class of each row, arguments checked."""
    one = logits.new_ones((), dtype=accumulator_dtype(logits.dtype))
    options = {"ignore_index": ignore_index, "reduce": False, "shards": shards}
    return row_loss(logits, classes, one, _LOG_P, **options)[0]  # type: ignore[arg-type]


class _LogProbsFunction(torch.autograd.Function):
    """``apply(logits, classes, ignore_index, backend)``: M log-probabilities of every row.

    The kernels see each row with one label, the most probable of its classes. That one's
    log-probability has its digits; the others' lie below it by differences of logits, and sums of
    numbers of one sign keep them.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor, classes: Tensor, ignore_index: int, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The log-probabilities, the label, and what backward needs."""
        dim = class_dim(logits)
        request = RowRequest.of(_CE, ignore_index, "loss", "saved", reduce=False)
        if _by_rows(logits, backend):
            here, classes = eager[CPU], classes.long().contiguous()
            label = here.most_probable(logits, classes, ignore_index)
            rows = (
                logits,
                label.squeeze(dim),
                logits.new_ones((), dtype=accumulator_dtype(logits.dtype)),
                None,
            )
            loss, saved = here.row_loss(*rows, *request)
            return here.log_probs(logits, classes, label, loss, ignore_index), label, saved
        z, top = _most_probable(logits, classes, ignore_index)
        label, z_top = classes.gather(dim, top), z.gather(dim, top)
        rows = logits, label.squeeze(dim), z.new_ones(()), None
        loss, saved = Where(backend).call("row_loss", *rows, *request)
        below = (z - z_top).masked_fill(z == z_top, 0)  # -inf - -inf is 0 here
        log_probs = below - loss.unsqueeze(dim)
        return log_probs.masked_fill(is_ignored(classes, ignore_index), 0), label, saved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what backward needs."""
        ctx.save_for_backward(*inputs[:2], *output)
        ctx.args = inputs[2:]
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        """``scatter(grad) - p * sum(grad)``."""
        logits, classes, log_probs, label, saved = ctx.saved_tensors
        ignore_index, backend = ctx.args
        if torch.is_grad_enabled() or forward_mode():
            grad = grad.masked_fill(is_ignored(classes, ignore_index), 0)
            return _differentiable(grad, logits, classes, ignore_index), None, None, None
        dim, request = class_dim(logits), RowRequest.of(_CE, ignore_index)
        if _by_rows(logits, backend) and plain_cpu(grad):
            here, grad, classes = eager[CPU], grad.contiguous(), classes.long().contiguous()
            of_rows = here.totals(grad, classes, ignore_index)
            rows = logits, label.squeeze(dim), -of_rows, saved
            grad_logits = here.row_grad(*rows, *request)
            here.add_ones_(grad_logits, grad, classes, label, log_probs, of_rows, ignore_index)
            return grad_logits, None, None, None
        grad = grad.masked_fill(is_ignored(classes, ignore_index), 0)
        total = grad.sum(dim, keepdim=True)
        rows = logits, label.squeeze(dim), -total.squeeze(dim), saved
        grad_logits = Where(backend).call("row_grad", *rows, *request)
        values = _gradient_at(classes, logits.shape[dim], grad, total, log_probs, label, dim)
        # Those of ignored entries go where the label's went, and are the same.
        ignored = is_ignored(classes, ignore_index)
        at_label = values.gather(dim, (classes == label).to(torch.uint8).argmax(dim, keepdim=True))
        values = torch.where(ignored, at_label, values).to(logits.dtype)
        places = _places(torch.where(ignored, label, classes), logits)
        return grad_logits.scatter_(dim, places, values), None, None, None


def _by_rows(logits: Tensor, backend: str) -> bool:
    """Whether csrc/cpu/log_probs.h does: it spares 40 tensors of the size of what is asked for."""
    return backend == CPU and logits.dim() == 2 and plain_cpu(logits)


def _most_probable(logits: Tensor, classes: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The logits of the given classes, and the place of the label among them."""
    dim = class_dim(logits)
    ignored = is_ignored(classes, ignore_index)
    outside = ~ignored & ((classes < 0) | (classes >= logits.shape[dim]))
    z = logits.gather(dim, _places(classes, logits)).to(accumulator_dtype(logits.dtype))
    # Whatever is wrong with a row is to show in it; an ignored entry only where all are.
    order = z.clamp(min=torch.finfo(z.dtype).min).masked_fill(ignored, -torch.inf)
    return z, order.masked_fill(outside, torch.inf).argmax(dim, keepdim=True)


def _by_formula(logits: Tensor, classes: Tensor, ignore_index: int) -> Tensor:
    """The same log-probabilities out of what PyTorch can differentiate forwards, and export."""
    dim = class_dim(logits)
    z, top = _most_probable(logits, classes, ignore_index)
    label, z_top = classes.gather(dim, top), z.gather(dim, top)
    of_label = _of_one_class(logits, label.squeeze(dim), ignore_index, None).unsqueeze(dim)
    both_absent = (z == -torch.inf) & (z_top == -torch.inf)
    below = (z - z_top).masked_fill((classes == label) | both_absent, 0)
    return (below + of_label).masked_fill(is_ignored(classes, ignore_index), 0)


def _gradient_at(
    classes: Tensor,
    num_classes: int,
    grad: Tensor,
    total: Tensor,
    log_probs: Tensor,
    label: Tensor,
    dim: int,
) -> Tensor:
    """The gradient of the logits of the given classes, rounded once.

    Where p is close to 1 its two parts are large and nearly equal; only the label can be there.
    """
    own = _sum_of_equals(classes, grad, num_classes, dim)
    is_label = classes == label
    others = grad.masked_fill(is_label, 0).sum(dim, keepdim=True)
    p = log_probs.exp()
    return torch.where(is_label, own * -torch.expm1(log_probs) - p * others, own - p * total)


def _sum_of_equals(classes: Tensor, values: Tensor, num_classes: int, dim: int) -> Tensor:
    """For each entry the sum of the values of all entries of its row with the same class."""
    if num_classes <= _FEW * classes.shape[dim]:
        shape = (*values.shape[:dim], num_classes, *values.shape[dim + 1 :])
        places = classes.long().clamp(0, num_classes - 1)
        return values.new_zeros(shape).scatter_add(dim, places, values).gather(dim, places)
    ordered, order = classes.sort(dim=dim, stable=True)
    most = ordered.shape[dim] - 1
    changed = ordered.narrow(dim, 1, most) != ordered.narrow(dim, 0, most)
    group = torch.cat([torch.zeros_like(ordered.narrow(dim, 0, 1)), changed], dim).cumsum(dim)
    sums = torch.zeros_like(values).scatter_add(dim, group, values.gather(dim, order))
    return torch.zeros_like(values).scatter(dim, order, sums.gather(dim, group))


def _differentiable(grad: Tensor, logits: Tensor, classes: Tensor, ignore_index: int) -> Tensor:
    """The gradient by what PyTorch can differentiate further."""
    dim = class_dim(logits)
    ignored = is_ignored(classes, ignore_index)
    outside = ~ignored & ((classes < 0) | (classes >= logits.shape[dim]))
    # Whatever stands in an ignored row, its gradient is 0, not 0 * NaN.
    z = logits.to(grad.dtype).masked_fill(ignored.all(dim, keepdim=True), 0)
    p = z.softmax(dim)
    ones = torch.zeros_like(p).scatter_add(dim, _places(classes, logits), grad)
    wrong = torch.where(outside.any(dim, keepdim=True), torch.nan, 0.0)
    return (ones - p * grad.sum(dim, keepdim=True) + wrong).to(logits.dtype)


def _places(classes: Tensor, logits: Tensor) -> Tensor:
    """Classes as an index that is never out of bounds."""
    return classes.long().clamp(0, logits.shape[class_dim(logits)] - 1)


def _check_classes(classes: Tensor, logits: Tensor) -> bool:
    """Whether there are several classes a row; raise TypeError or ValueError if neither."""
    dim, shape = class_dim(logits), logits.shape
    one = shape[:dim] + shape[dim + 1 :]
    several = isinstance(classes, Tensor) and classes.dim() == logits.dim()
    if several and classes.shape[dim] > 0:
        one = shape[:dim] + classes.shape[dim : dim + 1] + shape[dim + 1 :]
    checks.check_labels_of(classes, one, "logits", logits, "classes")
    return several
