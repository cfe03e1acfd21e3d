"""The loss of checked hidden states: who computes it, in which mode, and what comes out."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from anl_kernels.backends.choice import REFERENCE, choose_backend
from anl_kernels.distributed.collectives import CopyToShards
from anl_kernels.interface import BITS, RowRequest, outputs_of
from anl_kernels.labels import is_ignored
from anl_kernels.linear.autograd import LinearLossFunction, logits_of
from anl_kernels.linear.flops import register_formulas
from anl_kernels.linear.operators import Projection, Specs
from anl_kernels.linear.prepare import OF_IGNORED_ROWS, Operands
from anl_kernels.rows.autograd import apply
from anl_kernels.rows.loss import Aux, asks_for_probes, aux_of, probed, row_loss
from anl_kernels.rows.operators import Where
from anl_kernels.terms import Terms
from anl_kernels.terms.encoding import encode
from anl_kernels.tracing import forward_mode, recorded_for_others


def linear_loss(
    operands: Operands,
    projection: Projection,
    row_scale: Tensor,
    terms: Terms,
    *,
    ignore_index: int,
    reduce: bool,
    aux: tuple[str, ...] = (),
    term_weights: Tensor | None = None,
) -> tuple[Tensor, Aux]:
    """The loss of the rows of a checked projection, and what was asked for beside it.

    ``term_weights``, (T,), stand in the place of the terms' own.
    """
    if asks_for_probes(aux):
        compute = partial(
            linear_loss, operands, projection, row_scale, ignore_index=ignore_index, reduce=reduce
        )
        return probed(compute, terms, aux, term_weights=term_weights)
    num_rows = operands.target.numel()
    hidden = operands.hidden.reshape(num_rows, operands.hidden.shape[-1])  # D may be 0
    target, shape = operands.target.reshape(-1), operands.target.shape
    scale = row_scale.reshape(-1) if row_scale.dim() else row_scale
    like = hidden.new_empty((0, projection.num_classes), dtype=projection.dtype)
    backend = choose_backend(like, terms)
    options: Any = {
        "ignore_index": ignore_index,
        "reduce": reduce,
        "aux": aux,
        "term_weights": term_weights,
    }
    if can_be_fused(terms, backend):
        tensors = hidden, operands.weight, operands.bias, target, scale
        where = Where.of(backend, operands.shards)
        loss, made = _fused(tensors, terms, where, projection, **options)
    else:
        if operands.shards is not None:
            hidden = CopyToShards.apply(hidden, operands.shards.group)
        if not set(aux).intersection(OF_IGNORED_ROWS):
            hidden = hidden.masked_fill(is_ignored(target, ignore_index).unsqueeze(-1), 0)
        logits = logits_of(hidden, operands.weight, operands.bias, projection)
        loss, made = row_loss(logits, target, scale, terms, shards=operands.shards, **options)
    values = {name: getattr(made, name) for name in aux}
    views = {name: value.reshape((*value.shape[:-1], *shape)) for name, value in values.items()}
    return loss if reduce else loss.reshape(shape), Aux(**views)


def _fused(
    tensors: tuple[Tensor | None, ...],
    terms: Terms,
    where: Where,
    projection: Projection,
    *,
    ignore_index: int,
    reduce: bool,
    aux: tuple[str, ...],
    term_weights: Tensor | None,
) -> tuple[Tensor, Aux]:
    """Of (N, D) hidden states, a weight, a bias, a target and a scale, by the operators."""
    hidden, weight, bias, target, scale = tensors
    assert target is not None
    assert scale is not None
    grad_mode = torch.is_grad_enabled()
    weights = terms.tensor_weights(like=scale) if term_weights is None else term_weights
    learned = grad_mode and weights is not None and weights.requires_grad
    by_factor = learned or (grad_mode and scale.requires_grad)
    projection = projection.needing(hidden, weight, bias)
    # Three products instead of four. As for logits, an upstream gradient for each row comes too
    # late for that, and in float16 the loss scale does; float64 is there for gradcheck.
    one_pass = reduce and projection.dtype in (torch.float32, torch.bfloat16)
    outputs = BITS["loss"]
    if by_factor:
        outputs |= BITS["row_losses"]
    if projection.gradients:
        outputs |= BITS["grad"] if one_pass else BITS["saved"]
    if learned:
        outputs |= BITS["term_losses"]
    outputs |= outputs_of(*aux)
    specs = Specs(RowRequest(*encode(terms), ignore_index, outputs, reduce), where, projection)
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack():
        register_formulas()
    differentiable = bool(projection.gradients) or by_factor
    # Dynamo mistakes the arguments of a Function that no gradient goes through.
    arguments = *tensors, weights, *specs.flat
    if differentiable:
        made = apply(LinearLossFunction, *arguments)
    else:
        made = torch.ops.anl_kernels.linear_loss(*arguments)
    loss, rows, _ = specs.split(made)
    return loss, aux_of(aux, target.shape, rows)


def can_be_fused(terms: Terms, backend: str) -> bool:
    """Whether operators can do it: they are told of terms by name and numbers.

    A user's term may hold more, such as a parameter in its formula. The transforms of
    ``torch.func`` need autograd to see the logits; so does what is compiled, recorded or
    differentiated forwards on the reference backend.
    """
    if torch._C._are_functorch_transforms_active():
        return False
    recorded = torch.compiler.is_compiling() or recorded_for_others()
    if backend == REFERENCE and (recorded or forward_mode()):
        return False
    return all(term.may_have_kernel for term in terms.terms)
