"""The loss of rows whose normalised terms have gradients of one size, by a factor of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.compiler import is_compiling

from anl_kernels.backends import reference
from anl_kernels.backends.choice import REFERENCE, choose_backend
from anl_kernels.balance import Balance
from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.distributed.collectives import add_up_
from anl_kernels.distributed.local_parts import is_dtensor
from anl_kernels.distributed.row_shards import RowShards
from anl_kernels.interface import RowRequest, accumulator_dtype
from anl_kernels.labels import is_ignored
from anl_kernels.numbers import shown
from anl_kernels.rows.autograd import BatchBalancedFunction, apply
from anl_kernels.rows.loss import Aux, asks_for_probes, aux_of, aux_of_formulas, probed
from anl_kernels.rows.operators import Where
from anl_kernels.terms import Term, Terms
from anl_kernels.terms.row import Row
from anl_kernels.tracing import only_formulas, transforming, watched

Numbers = Sequence[float | Tensor]
Factors = Callable[[Tensor, Tensor], Tensor]
"""Makes (T,) factors of (T, ...) denominators and the target."""


class Compute(Protocol):
    """The loss of the same rows with other factors, weights of terms and auxiliary outputs."""

    def __call__(
        self,
        row_scale: Tensor,
        terms: Terms,
        *,
        term_weights: Tensor | None = None,
        aux: tuple[str, ...],
    ) -> tuple[Tensor, Aux]: ...


class ComputeOfBatch(Protocol):
    """What has the gradient of terms times factors, without one more pass over the logits."""

    def __call__(
        self,
        row_scale: Tensor,
        terms: Terms,
        *,
        term_weights: Tensor,
        factors_of: Factors,
        aux: tuple[str, ...],
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
    of_batch: ComputeOfBatch | None = None,
) -> tuple[Tensor, Aux]:
    """The loss of ``terms``, the gradient of each normalised one times its mean denominator."""
    running = _running(balance, terms, row_scale) if balance.over == "running" else None
    if not (torch.is_grad_enabled() and any(t.normalised for t in terms.terms)):
        return compute(row_scale, terms, aux=aux)  # the value is the plain one
    moves = running is not None and balance.training
    if moves and not is_compiling() and choose_backend(row_scale, terms) == REFERENCE:
        _check_not_computed_again()
    scale, weights = row_scale.detach(), _weights(terms, row_scale)
    constant = weights.detach()
    means_of = partial(mean_denominators, balance=balance, ignore_index=ignore_index, rows=rows)
    asked = tuple(dict.fromkeys((*aux, "term_losses", *(("denominators",) if moves else ()))))

    def factors_of(found: Tensor | None, labels: Tensor) -> Tensor:
        return _of_normalised(terms, means_of(found, labels)[0])

    if running is not None:
        before = _started(running, terms, num_classes)
        factors = _of_normalised(terms, before.to(scale.dtype) * num_classes)
        surrogate, made = compute(scale, terms, term_weights=constant * factors, aux=asked)
        if moves:
            means, count = means_of(made.denominators, target)
            _move(running, before, means / num_classes, count, balance.momentum)
    elif of_batch is not None and not transforming():
        options: Any = {"term_weights": constant, "factors_of": factors_of}
        surrogate, made = of_batch(scale, terms, **options, aux=asked)
    else:
        with torch.no_grad():
            _, found = compute(scale, terms, term_weights=constant, aux=("denominators",))
        factors = factors_of(found.denominators, target)
        surrogate, made = compute(scale, terms, term_weights=constant * factors, aux=asked)
    loss = _plain_loss(made.term_losses, weights, row_scale, reduce)
    kept = Aux(**{name: getattr(made, name) for name in aux})
    if only_formulas():  # with a jvp of its own Dynamo (2.13) refuses a Function
        return loss + (surrogate - surrogate.detach()), kept
    return apply(ValueWithGradient, loss, surrogate), kept


def row_loss_of_batch(
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    terms: Terms,
    *,
    term_weights: Tensor,
    factors_of: Factors,
    ignore_index: int,
    reduce: bool,
    inplace: bool,
    shards: ClassShards | None,
    aux: tuple[str, ...],
) -> tuple[Tensor, Aux]:
    """A loss with the gradient of checked rows, of each term times a factor of them all."""
    if asks_for_probes(aux):
        options: Any = {"ignore_index": ignore_index, "reduce": reduce, "shards": shards}

        def compute(both: Terms, **others: Any) -> tuple[Tensor, Aux]:
            return row_loss_of_batch(
                logits,
                target,
                row_scale,
                both,
                factors_of=partial(_followed_by_ones, factors_of, len(terms)),
                inplace=inplace,
                **others,
                **options,
            )

        return probed(compute, terms, aux, term_weights=term_weights)
    backend = choose_backend(logits, terms)
    if backend == REFERENCE:
        made = reference.row_loss(logits, target, term_weights, terms, ignore_index, shards)
        found = made.denominators(is_ignored(target, ignore_index))
        weighed = _over_rows(term_weights * factors_of(found, target), made.term_losses)
        scaled = (weighed * made.term_losses).sum(0) * row_scale
        loss = scaled.sum() if reduce else scaled
        return loss, aux_of_formulas(aux, logits, target, made, ignore_index, shards)
    outputs = ("loss", "saved", "denominators", "term_slopes", *aux)
    request = RowRequest.of(
        terms,
        ignore_index,
        *outputs,
        reduce=reduce,
        inplace=inplace and logits.requires_grad,
    )
    results = apply(
        BatchBalancedFunction,
        logits,
        target,
        row_scale,
        term_weights,
        Where.of(backend, shards),
        request,
        lambda found: factors_of(found.t(), target),
    )
    return results[0], aux_of(aux, target.shape, request.named(results[:-1]))


def _followed_by_ones(
    factors_of: Factors, num_terms: int, denominators: Tensor, target: Tensor
) -> Tensor:
    """The factors of terms that probes follow, and of these."""
    factors = factors_of(denominators[:num_terms], target)
    return torch.cat([factors, factors.new_ones(len(denominators) - num_terms)])


def mean_denominators(
    denominators: Tensor | None,
    target: Tensor,
    *,
    balance: Balance,
    ignore_index: int,
    rows: RowShards | None,
) -> tuple[Tensor, Tensor]:
    """(T,) means over the rows that count, of all ranks that share the batch; and their number.

    ``denominators`` are (T, ...). A row whose denominator is infinite or NaN, by an absent label or
    a logit that is NaN, counts in none: one bad step must not spoil the running mean for good.
    """
    assert denominators is not None
    found = denominators.detach().reshape(len(denominators), -1)
    here = ~is_ignored(target, ignore_index).flatten() & (found.sum(0) < torch.inf)
    sums, count = found.where(here, 0).sum(1), here.sum(dtype=found.dtype)
    if rows is not None or balance.process_group is not None:
        packed = torch.cat([sums, count.view(1)])
        packed = packed if rows is None else rows.total_for_rows(packed)
        if balance.process_group is not None:
            packed = add_up_(packed, balance.process_group)
        sums, count = packed[:-1], packed[-1]
    return sums / count.clamp(min=1), count


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
    term_losses: Tensor | None, weights: Tensor, row_scale: Tensor, reduce: bool
) -> Tensor:
    # A product of matrices would be TF32's where a user allows it.
    assert term_losses is not None
    scaled = (term_losses * _over_rows(weights, term_losses)).sum(0) * row_scale
    return scaled.sum() if reduce else scaled


def _over_rows(numbers: Tensor, of_terms: Tensor) -> Tensor:
    """(T,) numbers, for products with (T, ...)."""
    return numbers.view(-1, *[1] * (of_terms.dim() - 1))


# ---- numbers of terms ---------------------------------------------------------------------------


def _weights(terms: Terms, like: Tensor) -> Tensor:
    """The weights as a tensor, (T,)."""
    learned = terms.tensor_weights(like)
    return _vector(terms.factors, like) if learned is None else learned


def _of_normalised(terms: Terms, numbers: Tensor) -> Tensor:
    """The numbers of normalised terms, and 1 for the others."""
    if all(term.normalised for term in terms.terms):
        return numbers
    flags = [float(term.normalised) for term in terms.terms]
    return torch.where(_vector(flags, numbers) > 0, numbers, 1.0)


def _vector(numbers: Numbers, like: Tensor) -> Tensor:
    """The numbers on the device of ``like``, which are copied there once only."""
    if watched(like):
        one = like.new_ones(())  # a fill would make a constant of a symbol
        return torch.stack([one * number for number in numbers])
    return _filled(tuple(numbers), like.device, like.dtype)


@lru_cache(maxsize=256)
def _filled(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # or it could not be saved for backward later
        return torch.tensor(numbers, device=device, dtype=dtype)


# ---- the running mean ---------------------------------------------------------------------------


def _running(balance: Balance, terms: Terms, like: Tensor) -> Tensor:
    """The state; raise ValueError unless it fits."""
    running: Any = balance.running
    if running is not None and is_dtensor(running):  # as distribute_module makes of buffers
        running = running.to_local()
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


def _check_not_computed_again() -> None:
    """Formulas computed again for backward would see the mean that has moved by then."""
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        raise RuntimeError(
            "class_scale='running' cannot be used inside a saved-tensor hook, as "
            "torch.utils.checkpoint with use_reentrant=False has, where the loss is computed by "
            "formulas: it would be computed again with a mean that has moved; leave the loss out "
            "of the checkpoint, or pass class_scale='batch' or 'row'"
        )


def _started(running: Tensor, terms: Terms, num_classes: int) -> Tensor:
    """The mean summands, of uniform logits where none was seen yet; nothing waits for a GPU."""
    seen = running.detach()
    return torch.where(seen == 0, _vector(_uniform_summands(terms, num_classes, seen), seen), seen)


def _uniform_summands(terms: Terms, num_classes: int, like: Tensor) -> Numbers:
    if watched(like):  # numbers are not to be had
        like = like.new_empty((), dtype=accumulator_dtype(like.dtype))
        return [_mean_summand(term, num_classes, like) for term in terms.terms]
    return [uniform_summand(term, num_classes) for term in terms.terms]


def uniform_summand(term: Term, num_classes: int) -> float:
    """The mean summand of a term over the classes of a row of equal logits."""
    try:
        return _kept_summand(term, num_classes)
    except TypeError:  # a user's term that cannot be hashed
        return _kept_summand.__wrapped__(term, num_classes)


@lru_cache(maxsize=64)
def _kept_summand(term: Term, num_classes: int) -> float:
    like = torch.empty((), dtype=torch.float64, device="cpu")
    return float(_mean_summand(term, num_classes, like))


def _mean_summand(term: Term, num_classes: int, like: Tensor) -> Tensor:
    row = Row(like.new_zeros((1, num_classes)), like.new_zeros(1, dtype=torch.int64))
    return term.denominator(row).squeeze(0) / num_classes


@torch.no_grad()
def _move(running: Tensor, before: Tensor, now: Tensor, count: Tensor, momentum: float) -> None:
    after = torch.where(count > 0, before.lerp(now.to(before.dtype), momentum), running)
    if is_compiling() or not torch._C._are_functorch_transforms_active():
        running.copy_(after)
        return
    try:
        running.copy_(after)
    except RuntimeError as error:
        raise RuntimeError(
            "class_scale='running' moves its mean in place, which this transform of torch.func "
            "does not let it do: call eval() on the module, or give its buffers to "
            "torch.func.functional_call as arguments of the transformed function"
        ) from error
