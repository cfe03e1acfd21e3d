"""Kernel arguments out of tensors, terms and plans, by the names the kernels give them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from anl_kernels.backends.selection import interpreting
from anl_kernels.backends.triton.plan import Plan
from anl_kernels.backends.triton.terms import AFFINE, FUNCTORS, Functor
from anl_kernels.interface import RowOutputs, RowRequest, term_numbers
from anl_kernels.layout import RowView, writable_rows
from anl_kernels.terms import Terms

# Contracting a * b + c into one rounding is what the tests' error bounds were earned with; the
# default of this option changes between Triton releases.
OPTIONS = {"enable_fp_fusion": True}


def shape_args(view: RowView) -> dict[str, int]:
    """The sizes N, K, M of a view of rows."""
    B, K, M = view.shape
    return {"N": B * M, "K": K, "M": M}


def row_args(view: RowView, target: Tensor, request: RowRequest) -> dict[str, Any]:
    """The logits, labels and sizes."""
    return {
        "Z": view.strided,
        "Y": target.reshape(-1),
        **shape_args(view),
        "IGNORE": request.ignore_index,
    }


def block_args(plan: Plan, dtype: torch.dtype) -> dict[str, Any]:
    """Tile sizes, the accumulator and launch options."""
    return {
        "ACC": acc_type(dtype),
        "BLOCK_N": plan.block_n,
        "BLOCK_K": plan.block_k,
        "num_warps": plan.num_warps,
        **OPTIONS,
    }


def acc_type(dtype: torch.dtype) -> tl.dtype:
    """Triton's name for the accumulator of a storage dtype."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@lru_cache(maxsize=256)
def term_constants(terms: Terms) -> dict[str, Any]:
    """What is compiled in of a sum of terms: its functors, and which sums they need."""
    functors = [FUNCTORS[term.functor] for term in terms.terms]
    slots = [0]
    for functor in functors:
        slots.append(slots[-1] + int(functor.is_dense))
    return {
        "TERMS": tuple(
            (f.phi, f.head, f.sum_kind, slot, _source_key(f))
            for f, slot in zip(functors, slots, strict=False)
        ),
        "NUM_DENSE": slots[-1],
        "LINEAR": any(f.sum_kind.value == AFFINE.value or f.counts for f in functors),
    }


def _source_key(functor: Functor) -> int:
    """A hash of a functor's source, as a number: Triton compiles no strings in.

    Triton's cache on disk knows a function inside a tuple by its name alone: without this, a
    functor that changes, in a new release say, would go on running as it was compiled before.
    """
    key = "".join(getattr(part, "cache_key", "") for part in (functor.phi, functor.head))
    return int(hashlib.sha256(key.encode()).hexdigest()[:15], 16)


@lru_cache(maxsize=256)
def split_numbers(terms: Terms) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Weights and scalars of the terms: see :func:`split`."""
    return split(term_numbers(terms))


def split(numbers: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Run-time numbers as leading and trailing float32 parts: what ``numerics.scalar`` reads."""
    exact = torch.tensor(numbers, dtype=torch.float64)
    leading = exact.float().double()
    trailing = (exact - leading).nan_to_num()  # inf - inf
    return tuple(leading.tolist()), tuple(trailing.tolist())


def scale_arg(row_scale: Tensor) -> tuple[Tensor, int]:
    """A factor for every row, or one for all: (tensor, stride)."""
    if row_scale.dim() == 0:
        return row_scale, 0
    return row_scale.reshape(-1), 1


def output_args(outputs: RowOutputs, grad: Tensor) -> dict[str, Any]:
    """Where results go; None for what was not asked for."""
    per_row = (
        outputs.row_losses,
        outputs.saved,
        outputs.term_losses,
        outputs.lse,
        outputs.p_y,
        outputs.argmax,
    )
    return {
        "OUT": tuple(_or_none(tensor) for tensor in per_row),
        "GRAD": _rows_or_none(grad),
        "PROBS": _rows_or_none(outputs.probs),
    }


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, not on its arguments'; on a CPU it interprets."""
    if interpreting():
        from anl_kernels.backends.triton.interpreter import like_hardware

        return like_hardware()
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def num_processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 for the interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _or_none(tensor: Tensor) -> Tensor | None:
    return tensor if tensor.numel() else None


def _rows_or_none(tensor: Tensor) -> tuple[Tensor | None, int, int, int]:
    return writable_rows(tensor).strided if tensor.numel() else (None, 0, 0, 0)
