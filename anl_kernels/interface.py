"""What a compiled backend is given and gives back. Backends share nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from anl_kernels.layout import empty_like_rows
from anl_kernels.terms import Terms
from anl_kernels.terms.encoding import decode, encode

NUM_SAVED = 4
"""Saved numbers of a row beside one slope for each term; see docs/math.md."""


NUM_PARTIALS = 5
"""Columns of :meth:`Kernels.shard_partials`."""

NUM_LSE_PARTS = 2
"""Columns of what :meth:`ColumnKernels.column_sums` saves of rows."""


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of all arithmetic and of per-row results: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class RowOutputs(NamedTuple):
    """Results for N rows. Each is None unless it is wanted; the types do not say so."""

    loss: Tensor = None  # type: ignore[assignment]
    """The losses of rows times ``row_scale``, of the target's shape, or their sum."""
    grad: Tensor = None  # type: ignore[assignment]
    """The gradient times ``row_scale``, of the logits' shape; None if it replaces the logits."""
    probs: Tensor = None  # type: ignore[assignment]
    """The softmax, of the logits' shape."""
    row_losses: Tensor = None  # type: ignore[assignment]
    """(N,), unscaled; 0 for an ignored row."""
    saved: Tensor = None  # type: ignore[assignment]
    """(N, NUM_SAVED + T): what :meth:`Backend.row_grad_into` needs."""
    term_losses: Tensor = None  # type: ignore[assignment]
    """(N, T), unweighted."""
    lse: Tensor = None  # type: ignore[assignment]
    """(N,)."""
    p_y: Tensor = None  # type: ignore[assignment]
    """(N,); 0 for an ignored row."""
    argmax: Tensor = None  # type: ignore[assignment]
    """(N,) int64."""
    denominators: Tensor = None  # type: ignore[assignment]
    """(N, T): the size of what each term is divided by, 1 if nothing; 0 for an ignored row."""
    term_slopes: Tensor = None  # type: ignore[assignment]
    """(N, 2 T): what each term adds to the gradient at the label and to q, which are in ``saved``;
    0 for an ignored row. The reference has none."""


BITS = {name: 1 << place for place, name in enumerate(RowOutputs._fields)}
"""The bit of each output in :attr:`RowRequest.outputs`; csrc/tensors.h has the same order."""
_NAMES = tuple(
    tuple(name for name, bit in BITS.items() if outputs & bit) for outputs in range(1 << len(BITS))
)
OF_TERMS = ("term_losses", "denominators")
"""Outputs with a number for each term of a row."""
AUX = ("term_losses", "lse", "p_y", "argmax")
"""Outputs that are wanted together: they cost next to nothing."""


class RowRequest(NamedTuple):
    """What to compute of every row. Its fields, in order, follow the tensors of an operator."""

    functors: str
    """The terms, such as ``NCE:nce,NNCE:nnce``: the class of each, and its functor; ``NCE:nce@row``
    is balanced, its slopes multiplied by the denominators of their rows."""
    numbers: list[float]
    """For each term its weight and NUM_SCALARS scalars, which kernels read; then the parameters of
    each, which rebuild it."""
    moving: Tensor | None
    """(P,) float64 on the CPU: the numbers, where some change between calls of one graph."""
    ignore_index: int
    outputs: int
    """A bit for each output that is wanted: see :data:`BITS`."""
    reduce: bool = True
    """One loss, the sum over rows; else one for each row."""
    inplace: bool = False
    """The gradient takes the place of the logits."""

    @classmethod
    def of(
        cls,
        terms: Terms,
        ignore_index: int,
        *outputs: str,
        reduce: bool = True,
        inplace: bool = False,
    ) -> RowRequest:
        """A request for the named outputs."""
        wanted = outputs_of(*outputs)
        return cls(*encode(terms), ignore_index, wanted, reduce=reduce, inplace=inplace)

    @property
    def terms(self) -> Terms:
        """The sum of terms, its tensor weights apart."""
        numbers = self.numbers if self.moving is None else self.moving.tolist()
        return decode(self.functors, tuple(numbers))

    @property
    def num_terms(self) -> int:
        """How many there are: known where numbers are not."""
        return self.functors.count(",") + 1

    def saved_shape(self, num_rows: int) -> tuple[int, int]:
        """Of what is saved of rows."""
        return num_rows, NUM_SAVED + self.num_terms

    def wants(self, name: str) -> bool:
        """Whether an output is wanted."""
        return bool(self.outputs & BITS[name])

    @property
    def overwrites(self) -> bool:
        """Whether the gradient takes the place of the logits in the forward pass."""
        return self.inplace and bool(self.outputs & BITS["grad"])

    @property
    def reads_ignored(self) -> bool:
        """Whether ignored rows are read, for outputs that they have too."""
        return any(map(self.wants, ("lse", "argmax", "probs")))

    def asking(self, *outputs: str, **changes: Any) -> RowRequest:
        """The same for other outputs."""
        return self._replace(outputs=outputs_of(*outputs), **changes)

    def without_grad(self) -> RowRequest:
        """The same less the gradient, which was kept for backward."""
        return self._replace(outputs=self.outputs & ~BITS["grad"])

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs that an operator returns, in order."""
        return _NAMES[self.outputs & ~BITS["grad"] if self.inplace else self.outputs]

    def named(self, made: Sequence[Tensor]) -> RowOutputs:
        """What an operator returned."""
        return RowOutputs(**dict(zip(self.names, made, strict=True)))


REQUEST_SCHEMA = (
    "str functors, float[] numbers, Tensor? moving, int ignore_index, int outputs, bool reduce, "
    "bool inplace"
)
"""The fields of :class:`RowRequest` in an operator's schema; csrc/operators.h has the same."""


def outputs_of(*names: str) -> int:
    """The bits of outputs; a name may come twice."""
    bits = 0
    for name in names:
        bits |= BITS[name]
    return bits


def scaled_loss(
    row_losses: Tensor, target: Tensor, row_scale: Tensor, request: RowRequest
) -> Tensor:
    """``RowOutputs.loss`` out of the losses of rows."""
    scaled = row_losses.view(target.shape) * row_scale
    return scaled.sum() if request.reduce else scaled


def empty_outputs(logits: Tensor, target: Tensor, request: RowRequest) -> RowOutputs:
    """The wanted outputs, to be filled: also what a fake kernel answers."""
    acc, N, T = accumulator_dtype(logits.dtype), target.numel(), request.num_terms
    rows: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "loss": (() if request.reduce else tuple(target.shape), acc),
        "row_losses": ((N,), acc),
        "saved": (request.saved_shape(N), acc),
        "term_losses": ((N, T), acc),
        "lse": ((N,), acc),
        "p_y": ((N,), acc),
        "argmax": ((N,), torch.int64),
        "denominators": ((N, T), acc),
        "term_slopes": ((N, 2 * T), acc),
    }

    def empty(name: str) -> Tensor:
        if name not in rows:
            return empty_like_rows(logits)
        shape, dtype = rows[name]
        return logits.new_empty(shape, dtype=dtype)

    return RowOutputs(**{name: empty(name) for name in request.names})


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
        """What ``request`` wants of every row.

        ``target`` has the logits' shape less the class dimension; ``row_scale`` has as many
        elements as rows, or one; ``term_weights`` is (T,), in the place of the terms' factors, or
        None.
        """
        ...

    def row_grad_into(
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
        lse_parts: Tensor,
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
        at least one class here. Rows whose label is ``ignore_index`` need not be read unless the
        request ``reads_ignored``.

        Returns:
            (N, NUM_PARTIALS) in the accumulator dtype: of the classes here, less the label and
            those with a logit of -inf, their maximum m (-inf if there is none), the sums of
            exp(z - m) and of z - m, and their number; then the label's logit, -inf if it is
            elsewhere. And the place of that maximum, the first of equals, as (N,) int64; without
            elements unless ``argmax`` is wanted.
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
        """The loss heads of rows, from partials and sums of all their classes.

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
