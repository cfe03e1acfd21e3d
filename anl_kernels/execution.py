"""Runs a checked call of a loss: weights of rows, choice of backend and form, outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anl_kernels.autograd import DirectRowLossFunction, RowLossFunction
from anl_kernels.backends import reference
from anl_kernels.backends.selection import CPU, REFERENCE, choose_backend
from anl_kernels.checks import class_dim, on_plain_cpu
from anl_kernels.distributed.dtensor import AmongDTensors
from anl_kernels.distributed.rows import RowShards
from anl_kernels.distributed.shards import ClassShards
from anl_kernels.interface import RowOutputs
from anl_kernels.ops import RowSpec, encode
from anl_kernels.terms import Terms
from anl_kernels.tracing import transforming


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
    """The prediction, which is the class of the largest logit, the first of equals."""
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
    shards: ClassShards | None = None


def run(call: Call) -> tuple[Tensor, Aux]:
    """The loss, and what was asked for beside it."""
    logits = call.logits
    backend = choose_backend(logits.device.type, call.terms, logits, class_dim(logits))
    return _reference(call) if backend == REFERENCE else _kernels(call, backend)


def _reference(call: Call) -> tuple[Tensor, Aux]:
    weights = call.terms.tensor_weights(like=call.row_scale)
    rows = call.logits, call.target
    out = reference.row_loss(*rows, weights, call.terms, call.ignore_index, call.shards)
    scaled = out.row_losses * call.row_scale
    loss = scaled.sum() if call.reduce else scaled
    made = {
        name: reference.auxiliary(name, *rows, out, call.ignore_index, call.shards)
        for name in call.aux
    }
    return loss, Aux(**made)


def _kernels(call: Call, backend: str) -> tuple[Tensor, Aux]:
    logits = call.logits
    weights = call.terms.tensor_weights(like=call.row_scale)
    learned = weights is not None and weights.requires_grad and torch.is_grad_enabled()
    needs_grad = torch.is_grad_enabled() and logits.requires_grad
    plain = on_plain_cpu(logits) and on_plain_cpu(call.target)
    direct = backend == CPU and plain and call.shards is None
    spec = RowSpec(
        *(call.terms.derived(encode) if direct else encode(call.terms)),
        ignore_index=call.ignore_index,
        backend=backend,
        reduce=call.reduce,
        write_grad=needs_grad and _one_pass(call, learned),
        inplace=call.inplace and needs_grad,
        aux=learned or not {"probs"}.issuperset(call.aux),
        probs="probs" in call.aux,
        **({} if call.shards is None else call.shards.spec),
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
    made = dict(zip(RowOutputs._fields[1:], others, strict=True))
    return loss, aux_of(call.aux, call.target.shape, made)


def over_ranks(loss: Tensor, aux: Aux, rows: RowShards | None) -> tuple[Tensor, Aux]:
    """Results out of DTensors: the loss of all ranks' rows; what is of rows, as their DTensors."""
    if rows is None:
        return AmongDTensors.apply(loss), aux
    made = {
        name: None if value is None else rows.spread(value, 1 if name == "term_losses" else 0)
        for name, value in vars(aux).items()
        if name != "probs"
    }
    loss = rows.spread(loss) if loss.dim() else AmongDTensors.apply(rows.total(loss))
    return loss, Aux(**made, probs=aux.probs)


def aux_of(names: tuple[str, ...], shape: torch.Size, made: dict[str, Tensor]) -> Aux:
    """What was asked for of the results of rows, in the target's shape."""

    def shaped(name: str) -> Tensor:
        if name == "probs":
            return made[name]
        if name == "term_losses":
            losses = made[name].t()
            return losses.reshape(losses.shape[0], *shape)
        return made[name].view(shape)

    return Aux(**{name: shaped(name) for name in names})


def _one_pass(call: Call, learned_weights: bool) -> bool:
    """Whether the forward kernel shall write the gradient too: 1 read + 1 write of the logits.

    Otherwise the backward reads them again, half as much traffic more, but it takes any upstream
    gradient before it rounds. float16 needs that: NCE's gradient, about 1/K, is below float16's
    smallest number until a GradScaler has multiplied it. float64 is there for checks, such as
    gradcheck's that a second backward, which recomputes, gives the same bits. Compiled code and
    functorch transforms need it: the compiler would copy a gradient that is scaled in place, and
    functorch always asks for a differentiable backward, which recomputes. Classes on several ranks
    are read again for the gradient in either form, since the ranks' sums come first.
    """
    return (
        call.reduce
        and call.shards is None
        and call.logits.dtype in (torch.float32, torch.bfloat16)
        and not learned_weights
        and not call.row_scale.requires_grad
        and not transforming()
    )
