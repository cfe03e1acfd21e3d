"""The door to the kernels in C++ and CUDA: their operators, with a request for arguments."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from anl_kernels.interface import RowOutputs, RowRequest, term_numbers
from anl_kernels.terms import Terms


class CompiledBackend:
    """A ``Backend`` of operators that an extension registered.

    Args:
        operators: their namespace, such as ``torch.ops.anl_kernels_cpu``.
        functors: the names of the functors that the kernels have, in their order.
        dense: the names of those with a sum that needs the row's lse.
    """

    def __init__(self, operators: Any, functors: Sequence[str], dense: Collection[str]) -> None:
        self._operators = operators
        self._dense = frozenset(dense)
        self._functors = {name: place for place, name in enumerate(functors)}
        self.empty_like_rows = operators.empty_like_rows
        self.scale_ = operators.scale_
        self.softmax = operators.softmax
        self.softmax_backward = operators.softmax_backward
        self.column_sums = operators.column_sums
        self.column_grad = operators.column_grad

    def knows(self, functor: str) -> bool:
        """See ``Backend.knows``."""
        return functor in self._functors

    def row_loss(
        self,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor,
        term_weights: Tensor | None,
        request: RowRequest,
    ) -> RowOutputs:
        """See ``Backend.row_loss``."""
        return RowOutputs(
            *self._operators.row_loss(
                logits,
                target,
                row_scale,
                term_weights,
                *request.terms.derived(self._encode),
                request.ignore_index,
                request.reduce,
                request.write_grad,
                request.inplace,
                request.write_saved,
                request.aux,
                request.probs,
            )
        )

    def row_grad(
        self,
        grad: Tensor,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor,
        saved: Tensor,
        request: RowRequest,
    ) -> None:
        """See ``Backend.row_grad``."""
        encoded = request.terms.derived(self._encode)
        self._operators.row_grad_into(
            grad, logits, target, row_scale, saved, *encoded, request.ignore_index
        )

    def is_dense(self, functor: str) -> bool:
        """See ``Kernels.is_dense``."""
        return functor in self._dense

    def shard_partials(
        self, logits: Tensor, target: Tensor, request: RowRequest
    ) -> tuple[Tensor, Tensor]:
        """See ``Kernels.shard_partials``."""
        return self._operators.shard_partials(logits, target, request.ignore_index, request.aux)

    def shard_sums(
        self, logits: Tensor, target: Tensor, partials: Tensor, request: RowRequest
    ) -> Tensor:
        """See ``Kernels.shard_sums``."""
        encoded = request.terms.derived(self._encode)
        return self._operators.shard_sums(
            logits, target, partials, *encoded, request.ignore_index, request.aux
        )

    def shard_finish(
        self,
        partials: Tensor,
        sums: Tensor,
        target: Tensor,
        term_weights: Tensor | None,
        request: RowRequest,
    ) -> RowOutputs:
        """See ``Kernels.shard_finish``."""
        encoded = request.terms.derived(self._encode)
        nothing = partials.new_empty((0,))
        row_losses, *others = self._operators.shard_finish(
            partials, sums, target, term_weights, *encoded, request.ignore_index,
            request.write_saved, request.aux,
        )  # fmt: skip
        saved, term_losses, lse, p_y = others
        return RowOutputs(
            nothing, row_losses, nothing, saved, term_losses, lse, p_y, nothing, nothing
        )

    def _encode(self, terms: Terms) -> tuple[list[int], list[float]]:
        """Functors by their place in the kernels' list, and the terms' numbers."""
        return [self._functors[term.functor] for term in terms.terms], term_numbers(terms)
