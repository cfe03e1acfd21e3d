"""The operators of rows under ``torch.vmap``: more rows, in one call.

Rows do not know one another, so samples are one batch with the rows of all. What all rows of a call
share, the weights of terms and other numbers, may differ from sample to sample; then each sample is
a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anl_kernels.interface import RowOutputs
from anl_kernels.ops import RowSpec

_kernels = torch.ops.anl_kernels
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


def _rule(name: str, num_row_tensors: int) -> Callable[[_Rule], _Rule]:
    """Make the decorated function an operator's rule where only its first tensors are batched."""

    def register(rule: _Rule) -> _Rule:
        operator = getattr(_kernels, name)

        def choose(info: Any, in_dims: _Dims, *args: Any) -> tuple[Any, Any]:
            shared = in_dims[num_row_tensors:]
            if any(isinstance(dim, int) for dim in shared):
                return _one_by_one(operator, info.batch_size, in_dims, args)
            return rule(info.batch_size, in_dims, *args)

        torch.library.register_vmap(f"anl_kernels::{name}", choose)
        return rule

    return register


def _one_by_one(operator: Any, size: int, in_dims: _Dims, args: tuple[Any, ...]) -> Any:
    """A call for each sample."""

    def arguments(sample: int) -> list[Any]:
        pairs = zip(args, in_dims, strict=True)
        return [arg.select(dim, sample) if isinstance(dim, int) else arg for arg, dim in pairs]

    results = [operator(*arguments(sample)) for sample in range(size)]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    columns = tuple(torch.stack(column) for column in zip(*results, strict=True))
    return columns, (0,) * len(columns)


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


@_rule("row_loss", 3)
def _row_loss(
    size: int,
    in_dims: _Dims,
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    term_weights: Tensor | None,
    *args: Any,
) -> tuple[Any, Any]:
    samples, rows = _rows_of(size, in_dims, logits, target, row_scale)
    spec = RowSpec(*args)
    made = RowOutputs(
        *_kernels.row_loss(*rows, term_weights, *spec._replace(reduce=False))
    )._asdict()
    loss = samples.split(made.pop("loss"))
    outputs = [loss.flatten(1).sum(1) if spec.reduce and loss.dim() > 1 else loss]
    dims: list[int | None] = [0]
    num_rows = rows[1].numel()
    for name, tensor in made.items():
        asked = len(tensor) > 0 or num_rows == 0
        if asked and name in _LIKE_LOGITS:
            tensor = samples.split(tensor)
        elif asked:
            tensor = tensor.unflatten(0, (size, num_rows // size))
        outputs.append(tensor)
        dims.append(0 if asked else None)
    return tuple(outputs), tuple(dims)


@_rule("row_grad", 4)
def _row_grad(
    size: int,
    in_dims: _Dims,
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor,
    saved: Tensor,
    *spec: Any,
) -> tuple[Any, Any]:
    samples, rows = _rows_of(size, in_dims, logits, target, row_scale)
    of_rows = _batched(saved, in_dims[3], size).flatten(0, 1)
    return samples.split(_kernels.row_grad(*rows, of_rows, *spec)), 0


@_rule("softmax", 1)
def _softmax(size: int, in_dims: _Dims, logits: Tensor, backend: str) -> tuple[Any, Any]:
    z = _batched(logits, in_dims[0], size)
    samples = _Samples.of(z)
    return samples.split(_kernels.softmax(samples.merge(z), backend)), 0


@_rule("softmax_backward", 2)
def _softmax_backward(
    size: int, in_dims: _Dims, grad: Tensor, probs: Tensor, backend: str
) -> tuple[Any, Any]:
    upstream, p = _batched(grad, in_dims[0], size), _batched(probs, in_dims[1], size)
    samples = _Samples.of(p)
    rows = samples.merge(upstream), samples.merge(p)
    return samples.split(_kernels.softmax_backward(*rows, backend)), 0
