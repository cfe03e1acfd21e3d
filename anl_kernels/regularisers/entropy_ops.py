"""The operators ``torch.ops.anl_kernels.entropy*``: column sums, exchanged, and their gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from anl_kernels.backends.reference import ReferenceKernels
from anl_kernels.backends.selection import REFERENCE, load_backend
from anl_kernels.checks import class_dim
from anl_kernels.distributed.collectives import add_up_
from anl_kernels.interface import NUM_LSE_PARTS, ColumnKernels, accumulator_dtype
from anl_kernels.layout import empty_like_rows
from anl_kernels.operators import fake, operator
from anl_kernels.regularisers.entropy_formula import of_column_sums

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class EntropySpec(NamedTuple):
    """The arguments of the operators that are not tensors, in the operators' order."""

    min_prob: float
    backend: str
    group: str = ""
    """Name of the process group whose ranks share the batch; empty if all of it is here."""

    @property
    def max_prob(self) -> float:
        """The upper clamp."""
        return 1 - self.min_prob

    @property
    def process_group(self) -> ProcessGroup | None:
        """The group of that name."""
        if not self.group:
            return None
        # Not to be kept: see ClassShards.named.
        from torch.distributed.distributed_c10d import _resolve_process_group

        return _resolve_process_group(self.group)  # type: ignore[arg-type]

    def load(self) -> ColumnKernels:
        """The backend."""
        return ReferenceKernels() if self.backend == REFERENCE else load_backend(self.backend)


_SPEC = "float min_prob, str backend, str group"


@operator(
    f"entropy(Tensor logits, Tensor? counted, {_SPEC}) -> "
    "(Tensor value, Tensor slopes, Tensor lse_parts)"
)
def entropy(logits: Tensor, counted: Tensor | None, *spec: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The regulariser, and what :func:`entropy_grad` needs beside the logits.

    ``counted`` is a bool for each row, of the logits' shape less K; None if all of them count.
    """
    options = EntropySpec(*spec)
    kernels, group = options.load(), options.process_group
    sums, lse_parts = kernels.column_sums(logits, counted, options.min_prob, options.max_prob)
    if group is not None:
        sums = add_up_(sums, group)
    value, slopes = of_column_sums(sums, options.min_prob)
    return value, slopes, lse_parts


@fake("entropy")
def _(logits: Tensor, counted: Tensor | None, *spec: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype, dim = accumulator_dtype(logits.dtype), class_dim(logits)
    num_classes = logits.shape[dim]
    num_rows = logits.shape[:dim].numel() * logits.shape[dim + 1 :].numel()
    return (
        logits.new_empty((), dtype=dtype),
        logits.new_empty((num_classes,), dtype=dtype),
        logits.new_empty((num_rows, NUM_LSE_PARTS), dtype=dtype),
    )


_SAVED = "Tensor logits, Tensor? counted, Tensor slopes, Tensor lse_parts"


@operator(f"entropy_grad(Tensor upstream, {_SAVED}, {_SPEC}) -> Tensor")
def entropy_grad(
    upstream: Tensor,
    logits: Tensor,
    counted: Tensor | None,
    slopes: Tensor,
    lse_parts: Tensor,
    *spec: Any,
) -> Tensor:
    """The gradient with respect to the logits, times a 0-d ``upstream``."""
    options = EntropySpec(*spec)
    grad = options.load().empty_like_rows(logits)
    _column_grad(grad, upstream, logits, counted, slopes, lse_parts, options, accumulate=False)
    return grad


@fake("entropy_grad")
def _(upstream: Tensor, logits: Tensor, *args: Any) -> Tensor:
    return empty_like_rows(logits)


@operator(f"entropy_grad_(Tensor(a!) grad, Tensor upstream, {_SAVED}, {_SPEC}) -> ()")
def entropy_grad_(
    grad: Tensor,
    upstream: Tensor,
    logits: Tensor,
    counted: Tensor | None,
    slopes: Tensor,
    lse_parts: Tensor,
    *spec: Any,
) -> None:
    """:func:`entropy_grad`, added to a gradient."""
    torch.autograd.graph.increment_version(grad)
    options = EntropySpec(*spec)
    _column_grad(grad, upstream, logits, counted, slopes, lse_parts, options, accumulate=True)


@fake("entropy_grad_")
def _(*args: Any) -> None:
    return None


def _column_grad(
    grad: Tensor,
    upstream: Tensor,
    logits: Tensor,
    counted: Tensor | None,
    slopes: Tensor,
    lse_parts: Tensor,
    options: EntropySpec,
    accumulate: bool,
) -> None:
    group = options.process_group
    if group is not None:
        # This rank's rows are in the regulariser of every rank: see SumOfBatches.
        upstream = add_up_(upstream.clone(), group)
    options.load().column_grad(
        grad,
        logits,
        counted,
        lse_parts,
        slopes,
        upstream.to(slopes.dtype),
        options.min_prob,
        options.max_prob,
        accumulate,
    )
