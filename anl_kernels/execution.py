"""Runs a checked call of a loss: weights of rows, choice of backend and form, outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anl_kernels.autograd import DirectRowLossFunction, RowLossFunction
from anl_kernels.backends import reference
from anl_kernels.backends.interface import RowOutputs, accumulator_dtype
from anl_kernels.backends.selection import CPU, REFERENCE, choose_backend
from anl_kernels.checks import check_inplace, class_dim, on_plain_cpu, transforming
from anl_kernels.ops import RowSpec
from anl_kernels.options import Reduction
from anl_kernels.terms import Terms


@dataclass(frozen=True)
class Aux:
    """What a loss knew on its way, without gradient; None where it was not asked for.

    Shapes: N-d like the target, with T terms first in ``term_losses`` and like the logits in
    ``probs``. float32, or float64 for float64 logits; ``argmax`` int64; ``probs`` in the logits'
    dtype. Rows whose label is ignored have ``term_losses`` and ``p_y`` 0.
    """

    term_losses: Tensor | None = None
    """Each term's loss, without its weight."""
    lse: Tensor | None = None
    """Log-sum-exp of the logits."""
    p_y: Tensor | None = None
    """Probability of the label."""
    argmax: Tensor | None = None
    """The class of the largest logit, the first of equals: the prediction."""
    probs: Tensor | None = None
    """The softmax."""


@dataclass(frozen=True)
class Call:
    """A checked call of a loss."""

    logits: Tensor
    target: Tensor
    row_scale: Tensor
    terms: Terms
    ignore_index: int
    reduce: bool
    inplace: bool
    aux: tuple[str, ...]


def row_scale_of(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    reduction: Reduction,
    num_counted: int | None = None,
) -> Tensor:
    """The factor of each row, or one (0-d) for all: weights over the divisor of the mean.

    ``num_counted`` is the number of rows that are not ignored, if it is known.
    """
    acc = accumulator_dtype(logits.dtype)
    if weight is None and sample_weight is None and num_counted is not None:
        mean = reduction == "mean"
        factor = 1 / max(1, num_counted) if mean else 1.0
        return torch.scalar_tensor(factor, dtype=acc, device=logits.device)
    ignored = target == ignore_index
    scale = None
    if weight is not None:
        # The label may be ignore_index or, on a GPU, wrong; neither may become an address, nor
        # may the weight that is read instead count, infinite as it may be.
        scale = weight.to(acc)[target.clamp(0, weight.numel() - 1)].masked_fill(ignored, 0)
    if reduction == "mean":
        divisor = (~ignored).sum(dtype=acc) if scale is None else scale.sum()
        inverse = torch.where(divisor == 0, 0.0, 1 / divisor)
        scale = inverse if scale is None else scale * inverse
    if sample_weight is not None:
        factors = sample_weight.to(acc).masked_fill(ignored, 0)
        scale = factors if scale is None else scale * factors
    return logits.new_ones((), dtype=acc) if scale is None else scale


def run(call: Call) -> tuple[Tensor, Aux]:
    """The loss, and what was asked for beside it."""
    logits = call.logits
    backend = choose_backend(logits.device.type, call.terms, logits, class_dim(logits))
    return _reference(call) if backend == REFERENCE else _kernels(call, backend)


def _reference(call: Call) -> tuple[Tensor, Aux]:
    weights = call.terms.tensor_weights(like=call.row_scale)
    out = reference.row_loss(call.logits, call.target, weights, call.terms, call.ignore_index)
    scaled = out.row_losses * call.row_scale
    loss = scaled.sum() if call.reduce else scaled
    logits, dim = call.logits.detach(), class_dim(call.logits)
    ignored = call.target == call.ignore_index
    made = {
        "term_losses": lambda: out.term_losses.detach(),
        "lse": lambda: logits.to(accumulator_dtype(logits.dtype)).logsumexp(dim),
        "p_y": lambda: out.row.p_y.detach().masked_fill(ignored, 0),
        "argmax": lambda: logits.argmax(dim),
        "probs": lambda: reference.softmax(logits, dim),
    }
    return loss, Aux(**{name: made[name]() for name in call.aux})


def _kernels(call: Call, backend: str) -> tuple[Tensor, Aux]:
    logits = call.logits
    weights = call.terms.tensor_weights(like=call.row_scale)
    learned = weights is not None and weights.requires_grad and torch.is_grad_enabled()
    needs_grad = torch.is_grad_enabled() and logits.requires_grad
    if call.inplace and needs_grad:
        check_inplace(logits)
    direct = backend == CPU and on_plain_cpu(logits) and on_plain_cpu(call.target)
    names, params = call.terms.derived(_encode) if direct else _encode(call.terms)
    spec = RowSpec(
        names=names,
        params=params,
        ignore_index=call.ignore_index,
        backend=backend,
        reduce=call.reduce,
        write_grad=needs_grad and _one_pass(call, learned),
        inplace=call.inplace and needs_grad,
        aux=learned or not {"probs"}.issuperset(call.aux),
        probs="probs" in call.aux,
    )
    # Dynamo mistakes the arguments of a Function that no gradient goes through.
    differentiable = needs_grad or learned or call.row_scale.requires_grad
    if direct:
        results: list[RowOutputs] = []
        loss = DirectRowLossFunction.apply(
            logits, call.target, call.row_scale, weights, spec, call.terms, results
        )
        others = results[0][1:]
    else:
        bare = torch.compiler.is_compiling() and not differentiable
        apply = torch.ops.anl_kernels.row_loss if bare else RowLossFunction.apply
        loss, *others = apply(logits, call.target, call.row_scale, weights, *spec)
    return loss, _aux_of(call, *others[3:]) if call.aux else Aux()


def _aux_of(
    call: Call, term_losses: Tensor, lse: Tensor, p_y: Tensor, argmax: Tensor, probs: Tensor
) -> Aux:
    shape = call.target.shape
    made = {
        "term_losses": lambda: term_losses.t().reshape(len(call.terms), *shape),
        "lse": lambda: lse.view(shape),
        "p_y": lambda: p_y.view(shape),
        "argmax": lambda: argmax.view(shape),
        "probs": lambda: probs,
    }
    return Aux(**{name: made[name]() for name in call.aux})


def _encode(terms: Terms) -> tuple[str, list[float]]:
    return terms.names, list(terms.params)


def _one_pass(call: Call, learned_weights: bool) -> bool:
    """Whether the forward kernel shall write the gradient too: 1 read + 1 write of the logits.

    Otherwise the backward reads them again, half as much traffic more, but it takes any upstream
    gradient before it rounds. float16 needs that: NCE's gradient, about 1/K, is below float16's
    smallest number until a GradScaler has multiplied it. float64 is there for checks, such as
    gradcheck's that a second backward, which recomputes, gives the same bits. Compiled code and
    functorch transforms need it: the compiler would copy a gradient that is scaled in place, and
    functorch always asks for a differentiable backward, which recomputes.
    """
    return (
        call.reduce
        and call.logits.dtype in (torch.float32, torch.bfloat16)
        and not learned_weights
        and not call.row_scale.requires_grad
        and not transforming()
    )
