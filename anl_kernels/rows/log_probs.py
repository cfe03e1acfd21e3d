"""Log-probabilities of several classes of every row, by kernels that see one label a row.

They see each row with the most probable of its classes. That one's log-probability has its digits;
the others' lie below it by differences of logits, and sums of numbers of one sign keep them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anl_kernels.backends.choice import CPU, REFERENCE, choose_backend
from anl_kernels.backends.operators import eager
from anl_kernels.checks import class_dim
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.interface import RowRequest, accumulator_dtype
from anl_kernels.labels import is_ignored
from anl_kernels.rows.autograd import apply
from anl_kernels.rows.loss import row_loss
from anl_kernels.rows.operators import Where
from anl_kernels.terms import CE
from anl_kernels.tracing import forward_mode, only_formulas, plain_cpu, recorded_for_others

CROSS_ENTROPY, LOG_P = 1.0 * CE(), -1.0 * CE()
_FEW = 4  # times the classes asked for: a row of all is no more memory than there is then


def log_probs_of(
    logits: Tensor, classes: Tensor, several: bool, ignore_index: int, shards: ClassShards | None
) -> Tensor:
    """Log-probabilities of the classes of each row, arguments checked."""
    dim = class_dim(logits)
    if not several:
        return log_prob_of(logits, classes, ignore_index, shards)
    if classes.shape[dim] == 1:
        one = classes.squeeze(dim)
        return log_prob_of(logits, one, ignore_index, shards).unsqueeze(dim)
    if shards is not None:
        raise ValueError(
            f"classes must be one for each row where ranks share the classes of the logits, got "
            f"shape {tuple(classes.shape)}; call log_prob once for each"
        )
    backend = choose_backend(logits, CROSS_ENTROPY)
    if backend == REFERENCE and (only_formulas() or recorded_for_others()):
        return by_formula(logits, classes, ignore_index)
    return apply(LogProbsFunction, logits, classes, ignore_index, backend)[0]


def log_prob_of(
    logits: Tensor, classes: Tensor, ignore_index: int, shards: ClassShards | None
) -> Tensor:
    """Log-probability of one class of each row, arguments checked."""
    one = logits.new_ones((), dtype=accumulator_dtype(logits.dtype))
    options = {"ignore_index": ignore_index, "reduce": False, "shards": shards}
    return row_loss(logits, classes, one, LOG_P, **options)[0]  # type: ignore[arg-type]


class LogProbsFunction(torch.autograd.Function):
    """``apply(logits, classes, ignore_index, backend)``: M log-probabilities of every row."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor, classes: Tensor, ignore_index: int, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The log-probabilities, the label, and what backward needs."""

        def cross_entropy(label: Tensor) -> tuple[Tensor, Tensor]:
            request = RowRequest.of(CROSS_ENTROPY, ignore_index, "loss", "saved", reduce=False)
            rows = logits, label, logits.new_ones((), dtype=accumulator_dtype(logits.dtype)), None
            return Where(backend).call("row_loss", *rows, *request)

        return log_probs_by_label(logits, classes, ignore_index, backend, cross_entropy)

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

        def grad_of_label(upstream: Tensor) -> Tensor:
            rows = logits, label.squeeze(class_dim(logits)), upstream, saved
            request = RowRequest.of(CROSS_ENTROPY, ignore_index)
            return Where(backend).call("row_grad", *rows, *request)

        given = classes, label, log_probs, grad
        made = grad_by_label(logits, *given, ignore_index, backend, grad_of_label)
        return made, None, None, None


def by_formula(logits: Tensor, classes: Tensor, ignore_index: int) -> Tensor:
    """The same log-probabilities out of what PyTorch can differentiate forwards, and export."""
    dim = class_dim(logits)
    z, top = _most_probable(logits, classes, ignore_index)
    label, z_top = classes.gather(dim, top), z.gather(dim, top)
    of_label = log_prob_of(logits, label.squeeze(dim), ignore_index, None).unsqueeze(dim)
    both_absent = (z == -torch.inf) & (z_top == -torch.inf)
    below = (z - z_top).masked_fill((classes == label) | both_absent, 0)
    return (below + of_label).masked_fill(is_ignored(classes, ignore_index), 0)


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


def log_probs_by_label(
    logits: Tensor,
    classes: Tensor,
    ignore_index: int,
    backend: str,
    cross_entropy: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor, Tensor]:
    """The log-probabilities; each row's label; and what ``cross_entropy`` of it saved of rows.

    Args:
        logits: (K,), (N, K) or (N, K, d1, ...).
        classes: M in the place of K.
        ignore_index: stands for no class; the label only where all of a row do.
        backend: by name.
        cross_entropy: gives (losses, saved) of one label a row.
    """
    dim = class_dim(logits)
    if _by_rows(logits, backend):
        here, classes = eager[CPU], classes.long().contiguous()
        label = here.most_probable(logits, classes, ignore_index)
        loss, saved = cross_entropy(label.squeeze(dim))
        return here.log_probs(logits, classes, label, loss, ignore_index), label, saved
    z, top = _most_probable(logits, classes, ignore_index)
    label, z_top = classes.gather(dim, top), z.gather(dim, top)
    loss, saved = cross_entropy(label.squeeze(dim))
    below = (z - z_top).masked_fill(z == z_top, 0)  # -inf - -inf is 0 here
    log_probs = below - loss.unsqueeze(dim)
    return log_probs.masked_fill(is_ignored(classes, ignore_index), 0), label, saved


def grad_by_label(
    logits: Tensor,
    classes: Tensor,
    label: Tensor,
    log_probs: Tensor,
    grad: Tensor,
    ignore_index: int,
    backend: str,
    grad_of_label: Callable[[Tensor], Tensor],
) -> Tensor:
    """The gradient of the logits, from that of the log-probabilities, and what was found of them.

    ``grad_of_label`` gives the gradient that cross entropy of the label has with an upstream one of
    each row; it is completed in place, and may stand where the logits were.
    """
    dim = class_dim(logits)
    if _by_rows(logits, backend) and plain_cpu(grad):
        here, grad, classes = eager[CPU], grad.contiguous(), classes.long().contiguous()
        of_rows = here.totals(grad, classes, ignore_index)
        made = grad_of_label(-of_rows)
        here.add_ones_(made, grad, classes, label.long(), log_probs, of_rows, ignore_index)
        return made
    ignored = is_ignored(classes, ignore_index)
    grad = grad.masked_fill(ignored, 0)
    total = grad.sum(dim, keepdim=True)
    made = grad_of_label(-total.squeeze(dim))
    values = _gradient_at(classes, logits.shape[dim], grad, total, log_probs, label, dim)
    # Those of ignored entries go where the label's went, and are the same.
    at_label = values.gather(dim, (classes == label).to(torch.uint8).argmax(dim, keepdim=True))
    values = torch.where(ignored, at_label, values).to(made.dtype)
    return made.scatter_(dim, _places(torch.where(ignored, label, classes), made), values)


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
        at = classes.long().clamp(0, num_classes - 1)
        return values.new_zeros(shape).scatter_add(dim, at, values).gather(dim, at)
    ordered, order = classes.sort(dim=dim, stable=True)
    most = ordered.shape[dim] - 1
    changed = ordered.narrow(dim, 1, most) != ordered.narrow(dim, 0, most)
    group = torch.cat([torch.zeros_like(ordered.narrow(dim, 0, 1)), changed], dim).cumsum(dim)
    sums = torch.zeros_like(values).scatter_add(dim, group, values.gather(dim, order))
    return torch.zeros_like(values).scatter(dim, order, sums.gather(dim, group))


def _places(classes: Tensor, logits: Tensor) -> Tensor:
    """Classes as an index that is never out of bounds."""
    return classes.long().clamp(0, logits.shape[class_dim(logits)] - 1)
