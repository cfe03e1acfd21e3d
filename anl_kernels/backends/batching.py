"""The operators of rows under ``torch.vmap``: more rows, in one call.

Rows do not know one another, so samples are one batch with the rows of all. What all rows of a call
share, the weights of terms and other numbers, may differ from sample to sample; then each sample is
a call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anl_kernels.interface import RowRequest

_Dims = tuple[Any, ...]
_Rule = Callable[..., tuple[Any, Any]]
_LIKE_LOGITS = ("grad", "probs")


class _Samples(NamedTuple):
    """How many samples there are, and the rows of each; None if it is one, without a dimension."""

    size: int
    rows: int | None

    @classmethod
    def of(cls, logits: Tensor) -> _Samples:
        """Those of (B, K) or (B, N, K, d1, ...) logits."""
        return cls(logits.shape[0], None if logits.dim() == 2 else logits.shape[1])

    def merge(self, tensor: Tensor) -> Tensor:
        """(B, N, ...), or (B, ...) of single rows, as (B * N, ...)."""
        return tensor if self.rows is None else tensor.flatten(0, 1)

    def split(self, tensor: Tensor) -> Tensor:
        """The inverse of :meth:`merge`."""
        return tensor if self.rows is None else tensor.unflatten(0, (self.size, self.rows))


def _batched(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """With the samples as dimension 0; a tensor that all of them share is not copied."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def register_rules(namespace: str, library: torch.library.Library) -> None:
    """Give the operators of a namespace their rules."""
    for name, (rule, num_row_tensors) in _RULES.items():
        operator = getattr(getattr(torch.ops, namespace), name)
        chosen = partial(_choose, operator, rule, num_row_tensors)
        torch.library.register_vmap(f"{namespace}::{name}", chosen, lib=library)


def _choose(
    operator: Any, rule: _Rule, num_row_tensors: int, info: Any, in_dims: _Dims, *args: Any
) -> tuple[Any, Any]:
    """The rule, where only the operator's first tensors are batched."""
    if any(isinstance(dim, int) for dim in in_dims[num_row_tensors:]):
        return _one_by_one(operator, info.batch_size, in_dims, args)
    return rule(operator, info.batch_size, in_dims, *args)


def _one_by_one(operator: Any, size: int, in_dims: _Dims, args: tuple[Any, ...]) -> Any:
    """A call for each sample."""

    def arguments(sample: int) -> list[Any]:
        pairs = zip(args, in_dims, strict=True)
        return [arg.select(dim, sample) if isinstance(dim, int) else arg for arg, dim in pairs]

    results = [operator(*arguments(sample)) for sample in range(size)]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    columns = [torch.stack(column) for column in zip(*results, strict=True)]
    return columns, [0] * len(columns)


def _rows_of(
    size: int, in_dims: _Dims, logits: Tensor, target: Tensor, row_scale: Tensor
) -> tuple[_Samples, tuple[Tensor, Tensor, Tensor]]:
    """The samples, and their logits, target and factors as those of one batch."""
    z, y = _batched(logits, in_dims[0], size), _batched(target, in_dims[1], size)
    samples = _Samples.of(z)
    if in_dims[2] is not None or row_scale.dim():
        scale = _batched(row_scale, in_dims[2], size)
        scale = scale.reshape(*scale.shape, *(1,) * (y.dim() - scale.dim()))
        row_scale = samples.merge(scale.expand(y.shape))
    # Kernels walk over numbers of rows one after the other.
    return samples, (samples.merge(z), samples.merge(y).contiguous(), row_scale.contiguous())


def _row_loss(
    operator: Any,
    size: int,
    in_dims: _Dims,
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    term_weights: Tensor | None,
    *args: Any,
) -> tuple[Any, Any]:
    samples, rows = _rows_of(size, in_dims, logits, target, row_scale)
    request = RowRequest(*args)
    made = operator(*rows, term_weights, *request._replace(reduce=False))
    num_rows = rows[1].numel()

    def of_samples(name: str, tensor: Tensor) -> Tensor:
        if name == "loss":
            loss = samples.split(tensor)
            return loss.flatten(1).sum(1) if request.reduce and loss.dim() > 1 else loss
        if name in _LIKE_LOGITS:
            return samples.split(tensor)
        return tensor.unflatten(0, (size, num_rows // size))

    outputs = [of_samples(*named) for named in zip(request.names, made, strict=True)]
    return outputs, [0] * len(outputs)


def _row_grad(
    operator: Any,
    size: int,
    in_dims: _Dims,
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    saved: Tensor,
    *request: Any,
) -> tuple[Any, Any]:
    samples, rows = _rows_of(size, in_dims, logits, target, row_scale)
    of_rows = _batched(saved, in_dims[3], size).flatten(0, 1)
    return samples.split(operator(*rows, of_rows, *request)), 0


def _softmax(operator: Any, size: int, in_dims: _Dims, logits: Tensor) -> tuple[Any, Any]:
    z = _batched(logits, in_dims[0], size)
    samples = _Samples.of(z)
    return samples.split(operator(samples.merge(z))), 0


def _softmax_backward(
    operator: Any, size: int, in_dims: _Dims, grad: Tensor, probs: Tensor
) -> tuple[Any, Any]:
    upstream, p = _batched(grad, in_dims[0], size), _batched(probs, in_dims[1], size)
    samples = _Samples.of(p)
    return samples.split(operator(samples.merge(upstream), samples.merge(p))), 0


_RULES: dict[str, tuple[_Rule, int]] = {
    "row_loss": (_row_loss, 3),
    "row_grad": (_row_grad, 4),
    "softmax": (_softmax, 1),
    "softmax_backward": (_softmax_backward, 2),
}
"""Of each operator the rule, and how many of its first tensors are of rows."""
