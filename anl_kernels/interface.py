"""What a compiled backend is given and gives back. Backends share nothing else."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from anl_kernels.layout import empty_like_rows
from anl_kernels.terms import Terms

NUM_SAVED = 4
"""Saved numbers of a row beside one slope for each term; see docs/math.md."""


NUM_PARTIALS = 5
"""Columns of :meth:`Kernels.shard_partials`."""

NUM_LSE_PARTS = 2
"""Columns of what :meth:`ColumnKernels.column_sums` saves of rows."""

NUM_SCALARS = 3
"""Most hyper-parameters that a functor takes."""


def term_numbers(terms: Terms) -> list[float]:
    """For each term its weight, then ``NUM_SCALARS`` scalars: the layout that kernels read."""
    numbers: list[float] = []
    for factor, term in zip(terms.factors, terms.terms, strict=True):
        scalars = term.scalars()
        if len(scalars) > NUM_SCALARS:
            raise ValueError(f"{term!r} has {len(scalars)} scalars; a functor takes {NUM_SCALARS}")
        numbers += [factor, *scalars, *(0.0,) * (NUM_SCALARS - len(scalars))]
    return numbers


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of all arithmetic and of per-row results: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class RowRequest(NamedTuple):
    """What to compute of every row, beside its loss."""

    terms: Terms
    ignore_index: int
    reduce: bool = True
    """One loss, the sum over rows; else one for each row."""
    write_grad: bool = False
    """The gradient, times ``row_scale``."""
    inplace: bool = False
    """Put that gradient where the logits are."""
    write_saved: bool = False
    """What :meth:`Backend.row_grad` needs."""
    aux: bool = False
    """Term losses, lse, p_y and argmax."""
    probs: bool = False
    """The softmax."""


class RowOutputs(NamedTuple):
    """Results for N rows. What was not asked for is None, or a tensor without elements."""

    loss: Tensor
    """The losses of rows times ``row_scale``, of the target's shape, or their sum."""
    row_losses: Tensor
    """(N,), unscaled; 0 for an ignored row."""
    grad: Tensor
    """Shape of the logits."""
    saved: Tensor
    """(N, NUM_SAVED + T)."""
    term_losses: Tensor
    """(N, T), unweighted."""
    lse: Tensor
    """(N,)."""
    p_y: Tensor
    """(N,); 0 for an ignored row."""
    argmax: Tensor
    """(N,) int64."""
    probs: Tensor
    """Shape of the logits."""


def scaled_loss(
    row_losses: Tensor, target: Tensor, row_scale: Tensor, request: RowRequest
) -> Tensor:
    """``RowOutputs.loss`` out of the losses of rows."""
    scaled = row_losses.view(target.shape) * row_scale
    return scaled.sum() if request.reduce else scaled


def empty_outputs(logits: Tensor, target: Tensor, request: RowRequest) -> RowOutputs:
    """The outputs to be filled: also what a fake kernel answers."""
    acc, num_rows = accumulator_dtype(logits.dtype), target.numel()
    T = len(request.terms)

    def rows(wanted: bool, *shape: int, dtype: torch.dtype = acc) -> Tensor:
        return logits.new_empty((num_rows, *shape) if wanted else (0,), dtype=dtype)

    def like_logits(wanted: bool) -> Tensor:
        return empty_like_rows(logits) if wanted else logits.new_empty((0,))

    return RowOutputs(
        loss=logits.new_empty(() if request.reduce else target.shape, dtype=acc),
        row_losses=rows(True),
        grad=like_logits(request.write_grad and not request.inplace),
        saved=rows(request.write_saved, NUM_SAVED + T),
        term_losses=rows(request.aux, T),
        lse=rows(request.aux),
        p_y=rows(request.aux),
        argmax=rows(request.aux, dtype=torch.int64),
        probs=like_logits(request.probs),
    )


def tensors_only(outputs: RowOutputs, logits: Tensor) -> tuple[Tensor, ...]:
    """The outputs with an empty tensor for every None: what an operator may return."""
    dtypes = {"grad": logits.dtype, "probs": logits.dtype, "argmax": torch.int64}
    acc = accumulator_dtype(logits.dtype)
    return tuple(
        logits.new_empty((0,), dtype=dtypes.get(name, acc)) if tensor is None else tensor
        for name, tensor in outputs._asdict().items()
    )


class Backend(Protocol):
    """What computes rows. Logits are (K,), (N, K) or (N, K, d1, ...) of any strides."""

    def knows(self, functor: str) -> bool:
        """Whether the kernels have the functor that a term names."""
        ...

    def empty_like_rows(self, logits: Tensor) -> Tensor:
        """Where a gradient may go: :func:`anl_kernels.layout.empty_like_rows`."""
        ...

    def row_loss(
        self,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor,
        term_weights: Tensor | None,
        request: RowRequest,
    ) -> RowOutputs:
        """The loss of every row and what else ``request`` names.

        ``target`` has the logits' shape less the class dimension; ``row_scale`` has as many
        elements as rows, or one; ``term_weights`` is (T,), in the place of the terms' factors, or
        None.
        """
        ...

    def row_grad(
        self,
        grad: Tensor,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor,
        saved: Tensor,
        request: RowRequest,
    ) -> None:
        """Write to ``grad`` the gradient times ``row_scale``; ``grad`` may be the logits."""
        ...

    def scale_(self, tensor: Tensor, factor: Tensor) -> None:
        """Multiply in place by a 0-d tensor; free when it is 1, without asking the host."""
        ...


class ColumnKernels(Backend, Protocol):
    """A backend that also sums over columns, for terms of a batch."""

    def column_sums(
        self, logits: Tensor, counted: Tensor | None, low: float, high: float
    ) -> tuple[Tensor, Tensor]:
        """Sums over rows of their probabilities, each clamped to [low, high].

        ``counted`` is a bool for each row; None if all of them count. A row that does not may hold
        anything.

        Returns:
            (K,) in the accumulator dtype; and (N, NUM_LSE_PARTS) for :meth:`column_grad`, the
            maximum m of each row and log s, lse = m + log s: 0 for a row that does not count.
        """
        ...

    def column_grad(
        self,
        grad: Tensor,
        logits: Tensor,
        counted: Tensor | None,
        partials: Tensor,
        slopes: Tensor,
        scale: Tensor,
        low: float,
        high: float,
        accumulate: bool,
    ) -> None:
        """Write to ``grad``, or add, the gradient of a function of the sums, times ``scale``.

        ``slopes`` (K,) are its derivatives by the sums, ``scale`` is 0-d, both of the accumulator
        dtype. The gradient passes at the clamp's bounds. In a row that does not count it is 0.
        ``grad`` is not the logits.
        """
        ...


class Kernels(ColumnKernels, Protocol):
    """A backend of kernels, which can also work on some of a row's classes."""

    def is_dense(self, functor: str) -> bool:
        """Whether a functor's sum needs the row's lse first: :meth:`shard_sums` makes it."""
        ...

    def shard_partials(
        self, logits: Tensor, target: Tensor, request: RowRequest
    ) -> tuple[Tensor, Tensor]:
        """What a shard, some of the classes of every row, knows before the row's lse is known.

        ``target`` holds the label's place in this shard; a label that is elsewhere is -1. There is
        at least one class here. Rows whose label is ``ignore_index`` need not be read unless
        ``request.aux``.

        Returns:
            (N, NUM_PARTIALS) in the accumulator dtype: of the classes here, less the label and
            those with a logit of -inf, their maximum m (-inf if there is none), the sums of
            exp(z - m) and of z - m, and their number; then the label's logit, -inf if it is
            elsewhere. And the place of that maximum, the first of equals, as (N,) int64; without
            elements unless ``request.aux``.
        """
        ...

    def shard_sums(
        self, logits: Tensor, target: Tensor, partials: Tensor, request: RowRequest
    ) -> Tensor:
        """Sums over the classes of a shard, less the label, once the partials are of whole rows.

        Returns:
            (N, 2 * number of dense terms) in the accumulator dtype: for each, in the order of the
            terms, the sum of phi and that of its slope. Zeros where a row is not read.
        """
        ...

    def shard_finish(
        self,
        partials: Tensor,
        sums: Tensor,
        target: Tensor,
        term_weights: Tensor | None,
        request: RowRequest,
    ) -> RowOutputs:
        """The heads of rows, from partials and sums of all their classes.

        Of the target only whether it is ``ignore_index`` matters. A label's logit of NaN makes the
        row NaN.

        Returns:
            Row losses and, as ``request`` asks, saved, term losses, lse and p_y; nothing else.
        """
        ...

    def softmax(self, logits: Tensor) -> Tensor:
        """Softmax over the class dimension."""
        ...

    def softmax_backward(self, grad: Tensor, probs: Tensor) -> Tensor:
        """Gradient with respect to the logits of a softmax."""
        ...
