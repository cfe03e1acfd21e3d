"""Runs a checked call of head and loss: choice of backend and form, outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anl_kernels import execution
from anl_kernels.backends.selection import REFERENCE, choose_backend
from anl_kernels.distributed.collectives import CopyToShards
from anl_kernels.execution import Aux, Call
from anl_kernels.labels import is_ignored
from anl_kernels.linear.arguments import OF_IGNORED_ROWS, LocalHead
from anl_kernels.linear.autograd import LinearLossFunction, logits_of
from anl_kernels.linear.flops import register_formulas
from anl_kernels.linear.ops import ROW_OUTPUTS, HeadSpec
from anl_kernels.ops import RowSpec, encode
from anl_kernels.terms import Terms
from anl_kernels.tracing import forward_mode, recorded_for_others


@dataclass(frozen=True)
class LinearCall:
    """A checked call of head and loss."""

    head: LocalHead
    options: HeadSpec
    row_scale: Tensor
    terms: Terms
    ignore_index: int
    reduce: bool
    aux: tuple[str, ...]


def run(call: LinearCall) -> tuple[Tensor, Aux]:
    """The loss, and what was asked for beside it."""
    head, options = call.head, call.options
    hidden = head.hidden.reshape(head.target.numel(), head.hidden.shape[-1])
    rows = hidden.new_empty((0, options.num_classes), dtype=options.dtype)
    backend = choose_backend(hidden.device.type, call.terms, rows, 1)
    if not _can_be_fused(call.terms, backend):
        return _unfused(call)
    weights = call.terms.tensor_weights(like=call.row_scale)
    grad_mode = torch.is_grad_enabled()
    learned = weights is not None and weights.requires_grad and grad_mode
    options = options._replace(
        needs_hidden=hidden.requires_grad and grad_mode,
        needs_weight=head.weight.requires_grad and grad_mode,
        needs_bias=head.bias is not None and head.bias.requires_grad and grad_mode,
    )
    needs_grad = options.needs_hidden or options.needs_weight or options.needs_bias
    spec = RowSpec(
        *encode(call.terms),
        ignore_index=call.ignore_index,
        backend=backend,
        reduce=call.reduce,
        write_grad=needs_grad and _one_pass(call),
        aux=learned or bool(call.aux),
        **({} if head.shards is None else head.shards.spec),
    )
    scale = call.row_scale if call.row_scale.dim() == 0 else call.row_scale.reshape(-1)
    tensors = hidden, head.weight, head.bias, head.target.reshape(-1), scale, weights
    differentiable = needs_grad or learned or (scale.requires_grad and grad_mode)
    # Dynamo mistakes the arguments of a Function that no gradient goes through.
    bare = torch.compiler.is_compiling() and not differentiable
    apply = torch.ops.anl_kernels.linear_loss if bare else LinearLossFunction.apply
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack():
        register_formulas()
    loss, *others = apply(*tensors, *spec, *options)
    shape = head.target.shape
    made = dict(zip(ROW_OUTPUTS, others, strict=False))
    loss = loss if call.reduce else loss.view(shape)
    return loss, execution.aux_of(call.aux, shape, made)


def _can_be_fused(terms: Terms, backend: str) -> bool:
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


def _one_pass(call: LinearCall) -> bool:
    """Whether the gradients shall come with the loss: three products instead of four.

    As for logits, an upstream gradient for each row comes too late for that, and in float16 the
    loss scale does; float64 is there for gradcheck.
    """
    return call.reduce and call.options.dtype in (torch.float32, torch.bfloat16)


def _unfused(call: LinearCall) -> tuple[Tensor, Aux]:
    """With all logits at once."""
    head = call.head
    hidden = head.hidden
    if head.shards is not None:
        hidden = CopyToShards.apply(hidden, head.shards.group)
    if not set(call.aux).intersection(OF_IGNORED_ROWS):
        ignored = is_ignored(head.target, call.ignore_index)
        hidden = hidden.masked_fill(ignored.unsqueeze(-1), 0)
    rows = hidden.reshape(head.target.numel(), hidden.shape[-1])  # D may be 0
    logits = logits_of(rows, head.weight, head.bias, call.options)
    loss, aux = execution.run(
        Call(
            logits=logits,
            target=head.target.reshape(-1),
            row_scale=call.row_scale.reshape(-1) if call.row_scale.dim() else call.row_scale,
            terms=call.terms,
            ignore_index=call.ignore_index,
            reduce=call.reduce,
            inplace=False,
            aux=call.aux,
            shards=head.shards,
        )
    )
    shape = head.target.shape
    named = {name: getattr(aux, name) for name in call.aux}
    views = {name: value.reshape(*value.shape[:-1], *shape) for name, value in named.items()}
    return loss if call.reduce else loss.reshape(shape), Aux(**views)
