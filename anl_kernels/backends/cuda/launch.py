"""The CUDA backend: hands tensors to the C++ operators. The functions are ``Backend``'s."""

from __future__ import annotations

import torch
from torch import Tensor

from anl_kernels.backends.cuda import library
from anl_kernels.backends.interface import RowOutputs, RowRequest, scaled_loss, term_numbers
from anl_kernels.terms import Terms

_functors = {name: place for place, name in enumerate(library.load().functor_names())}
_operators = torch.ops.anl_kernels_cuda


def knows(functor: str) -> bool:
    """See ``Backend.knows``."""
    return functor in _functors


def empty_like_rows(logits: Tensor) -> Tensor:
    """See ``Backend.empty_like_rows``."""
    return _operators.empty_like_rows(logits)


def row_loss(
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    term_weights: Tensor | None,
    request: RowRequest,
) -> RowOutputs:
    """See ``Backend.row_loss``."""
    outputs = RowOutputs(
        *_operators.row_loss(
            logits,
            target,
            row_scale,
            term_weights,
            *_encode(request.terms),
            request.ignore_index,
            request.write_grad,
            request.inplace,
            request.write_stats,
            request.aux,
            request.probs,
        )
    )
    return outputs._replace(loss=scaled_loss(outputs.row_losses, target, row_scale, request))


def row_grad(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    stats: Tensor,
    request: RowRequest,
) -> None:
    """See ``Backend.row_grad``."""
    _operators.row_grad_into(
        grad, logits, target, row_scale, stats, *_encode(request.terms), request.ignore_index
    )


def scale_(tensor: Tensor, factor: Tensor) -> None:
    """See ``Backend.scale_``."""
    _operators.scale_(tensor, factor)


def softmax(logits: Tensor) -> Tensor:
    """See ``Backend.softmax``."""
    return _operators.softmax(logits)


def softmax_backward(grad: Tensor, probs: Tensor) -> Tensor:
    """See ``Backend.softmax_backward``."""
    return _operators.softmax_backward(grad, probs)


def _encode(terms: Terms) -> tuple[list[int], list[float]]:
    """Functors by their place in the kernels' list, and the terms' numbers."""
    return terms.derived(_encode_now)


def _encode_now(terms: Terms) -> tuple[list[int], list[float]]:
    return [_functors[term.functor] for term in terms.terms], term_numbers(terms)
