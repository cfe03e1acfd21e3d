"""The kernels in C++ and CUDA as a ``Kernels``: their operators, whose results get names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from anl_kernels.interface import RowOutputs, RowRequest


class CompiledBackend:
    """A ``Kernels`` of operators that an extension registered.

    Args:
        operators: their namespace, such as ``torch.ops.anl_kernels_cpu``.
        functors: the names of the functors that the kernels have.
        dense: the names of the dense ones: see ``Kernels.is_dense``.
    """

    def __init__(self, operators: Any, functors: Collection[str], dense: Collection[str]) -> None:
        self._operators = operators
        self.knows = frozenset(functors).__contains__
        self.is_dense = frozenset(dense).__contains__
        self.empty_like_rows = operators.empty_like_rows
        self.scale_ = operators.scale_
        self.softmax = operators.softmax
        self.softmax_backward = operators.softmax_backward
        self.column_sums = operators.column_sums
        self.column_grad = operators.column_grad

    def row_loss(self, logits: Tensor, *args: Any) -> RowOutputs:
        """See ``Backend.row_loss``."""
        *tensors, request = args
        operators = self._operators
        operator = operators.row_loss_ if request.inplace else operators.row_loss
        return request.named(operator(logits, *tensors, *request))

    def row_grad_into(self, grad: Tensor, *args: Any) -> None:
        """See ``Backend.row_grad_into``."""
        *tensors, request = args
        self._operators.row_grad_into(grad, *tensors, *request)

    def shard_partials(
        self, logits: Tensor, target: Tensor, request: RowRequest
    ) -> tuple[Tensor, Tensor]:
        """See ``Kernels.shard_partials``."""
        return self._operators.shard_partials(logits, target, *request)

    def shard_sums(
        self, logits: Tensor, target: Tensor, partials: Tensor, request: RowRequest
    ) -> Tensor:
        """See ``Kernels.shard_sums``."""
        return self._operators.shard_sums(logits, target, partials, *request)

    def shard_finish(self, partials: Tensor, *args: Any) -> RowOutputs:
        """See ``Kernels.shard_finish``."""
        *tensors, request = args
        return request.named(self._operators.shard_finish(partials, *tensors, *request))
