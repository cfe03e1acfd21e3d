"""The loss of rows whose normalised terms have gradients of one size, by a factor of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from anl_kernels.balance import Balance
from anl_kernels.distributed.collectives import add_up_
from anl_kernels.distributed.row_shards import RowShards
from anl_kernels.labels import is_ignored
from anl_kernels.numbers import shown
from anl_kernels.rows.autograd import apply
from anl_kernels.rows.loss import Aux
from anl_kernels.terms import Terms
from anl_kernels.terms.row import Row
from anl_kernels.tracing import only_formulas

Numbers = Sequence[float | Tensor]


class Compute(Protocol):
    """The loss of the same rows for other terms, factors of rows and auxiliary outputs."""

    def __call__(
        self, row_scale: Tensor, terms: Terms, *, aux: tuple[str, ...]
    ) -> tuple[Tensor, Aux]: ...


def balanced_loss(
    balance: Balance,
    compute: Compute,
    row_scale: Tensor,
    terms: Terms,
    *,
    target: Tensor,
    num_classes: int,
    ignore_index: int,
    reduce: bool,
    aux: tuple[str, ...],
    rows: RowShards | None,
) -> tuple[Tensor, Aux]:
    """The loss of ``terms``, the gradient of each normalised one times its mean denominator."""
    moves = balance.over == "running" and balance.training
    if not (torch.is_grad_enabled() or moves) or not any(t.normalised for t in terms.terms):
        return compute(row_scale, terms, aux=aux)  # the value is the plain one
    valid = ~is_ignored(target, ignore_index)
    if balance.over == "batch":
        with torch.no_grad():
            _, found = compute(row_scale, terms, aux=("denominators",))
        means, _ = mean_denominators(found.denominators, valid, balance, rows)
        factors: Numbers = means.unbind()
    else:
        running = _running(balance, terms, row_scale)
        before = _started(running, terms, num_classes)
        factors = [value.to(row_scale.dtype) * num_classes for value in before]
    asked = ("term_losses", *(("denominators",) if moves else ()))
    surrogate, made = compute(
        row_scale.detach(), _scaled(terms, factors), aux=tuple(dict.fromkeys((*aux, *asked)))
    )
    if moves:
        means, count = mean_denominators(made.denominators, valid, balance, rows)
        _move(running, torch.stack(list(before)), means / num_classes, count, balance.momentum)
    loss = _plain_loss(made.term_losses, terms, row_scale, reduce)
    kept = Aux(**{name: getattr(made, name) for name in aux})
    if only_formulas():  # with a jvp of its own Dynamo (2.13) refuses a Function
        return loss + (surrogate - surrogate.detach()), kept
    return apply(ValueWithGradient, loss, surrogate), kept


def mean_denominators(
    denominators: Tensor | None, valid: Tensor, balance: Balance, rows: RowShards | None
) -> tuple[Tensor, Tensor]:
    """(T,) means over the rows that count, of all ranks that share the batch; and their number.

    A row whose denominator is infinite or NaN, by an absent label or a logit that is NaN, counts in
    none: one bad step must not spoil the running mean for good.
    """
    assert denominators is not None
    found = denominators.detach().flatten(1)
    here = valid.flatten() & found.isfinite().all(0)
    sums = torch.cat([found.where(here, 0).sum(1), here.sum(dtype=found.dtype).view(1)])
    if rows is not None:
        sums = rows.total_for_rows(sums)
    if balance.process_group is not None:
        sums = add_up_(sums, balance.process_group)
    count = sums[-1]
    return sums[:-1] / count.clamp(min=1), count


class ValueWithGradient(torch.autograd.Function):
    """``apply(value, surrogate)``: the value, with the gradients of both."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:
        """The value."""
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        """To both."""
        return grad, grad


def _plain_loss(
    term_losses: Tensor | None, terms: Terms, row_scale: Tensor, reduce: bool
) -> Tensor:
    assert term_losses is not None
    learned = terms.tensor_weights(like=row_scale)
    weights: Any = terms.factors if learned is None else learned.unbind()
    losses = torch.stack([w * loss for w, loss in zip(weights, term_losses.unbind(), strict=True)])
    scaled = losses.sum(0) * row_scale
    return scaled.sum() if reduce else scaled


def _scaled(terms: Terms, factors: Numbers) -> Terms:
    """The sum whose gradient by the logits is wanted: nothing else learns from it."""
    tensors = [None if tensor is None else tensor.detach() for tensor in terms.tensors]
    for t, (term, factor) in enumerate(zip(terms.terms, factors, strict=True)):
        if term.normalised:
            old = tensors[t]
            tensors[t] = torch.as_tensor(factor) if old is None else old * factor
    return Terms(terms.terms, terms.factors, tuple(tensors))


# ---- the running mean ---------------------------------------------------------------------------


def _running(balance: Balance, terms: Terms, like: Tensor) -> Tensor:
    """The state; raise ValueError unless it fits."""
    running = balance.running
    if running is None:
        raise ValueError(
            "class_scale='running' needs a mean that is kept from call to call: use a module, such "
            "as ak.RobustLoss(terms, class_scale='running'), or pass "
            f"ak.Balance('running', running=torch.zeros({len(terms)}))"
        )
    if running.shape != (len(terms),) or running.device != like.device:
        raise ValueError(
            f"running must have a number for each of the {len(terms)} terms, on {like.device}, got "
            f"{shown(running)} on {running.device}"
        )
    return running


def _started(running: Tensor, terms: Terms, num_classes: int) -> list[Tensor]:
    """The mean summands, of uniform logits where none was seen yet; nothing waits for a GPU."""
    if torch.compiler.is_compiling() or type(num_classes) is not int:
        uniform = uniform_summands(terms, num_classes)
    else:
        uniform = terms.derived(_uniform_numbers, num_classes)
    return [
        torch.where(value == 0, first, value)
        for value, first in zip(running.detach().unbind(), uniform, strict=True)
    ]


def uniform_summands(terms: Terms, num_classes: int) -> Numbers:
    """The mean summand of each term over the classes of a row of equal logits."""
    row = Row(torch.zeros(1, num_classes), torch.zeros(1, dtype=torch.int64))
    return [term.denominator(row).squeeze(0) / num_classes for term in terms.terms]


def _uniform_numbers(terms: Terms, num_classes: int) -> Numbers:
    return [float(summand) for summand in uniform_summands(terms, num_classes)]


@torch.no_grad()
def _move(running: Tensor, before: Tensor, now: Tensor, count: Tensor, momentum: float) -> None:
    after = before + momentum * (now.to(before.dtype) - before)
    running.copy_(torch.where(count > 0, after, running))
