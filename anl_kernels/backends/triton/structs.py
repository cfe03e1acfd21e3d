"""What kernels are given, as structs whose fields they name, and how a launch passes them.

Triton takes a NamedTuple as its fields: None and 1 among them are compiled in, and so is all of a
struct that is a ``tl.constexpr``.
"""

from __future__ import annotations

import hashlib
import math
from collections import namedtuple
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from anl_kernels.backends.triton.plan import Plan
from anl_kernels.backends.triton.terms import AFFINE, FUNCTORS, Functor
from anl_kernels.interface import RowOutputs, RowRequest
from anl_kernels.layout import RowView, writable_rows
from anl_kernels.settings import interpreting
from anl_kernels.terms import Terms
from anl_kernels.terms.balanced import Balanced
from anl_kernels.terms.encoding import NUM_SCALARS, encode

VECTOR_BYTES = 16  # of the widest load

Numbers = tuple[tuple[float, ...], tuple[float, ...]]


class Strided(NamedTuple):
    """A (B, K, M) tensor."""

    data: Tensor | None
    stride_b: int
    stride_k: int
    stride_m: int


class Shape(NamedTuple):
    """``SHAPE``: N rows of K classes; row n is position n % M of batch n // M."""

    N: int
    K: int
    M: int


class Parts(NamedTuple):
    """``PARTS``: what parts of rows leave; see :mod:`anl_kernels.backends.triton.split`."""

    partials: Tensor
    best: Tensor | None


Outputs = namedtuple("Outputs", RowOutputs._fields[3:])  # type: ignore[misc]
"""``OUT``: the results of rows. Strided ones are apart: Triton 3.6 fails on them in a struct."""


class CompiledTerm(NamedTuple):
    """A term of a sum, as it is compiled in."""

    phi: triton.JITFunction
    head: triton.JITFunction
    sum_kind: tl.constexpr
    slot: int
    """Its place among the dense terms."""
    balanced: bool
    """Whether its slopes are multiplied by its row's denominator."""
    source: int
    """A hash of the functor's source, as a number: Triton compiles no strings in.

    Triton's cache on disk knows a function inside a tuple by its name alone: without this, a
    functor that changes, in a new release say, would go on running as it was compiled before.
    """


class CompiledTerms(NamedTuple):
    """``TERMS``: a sum of terms, as it is compiled in."""

    each: tuple[CompiledTerm, ...]
    num_dense: int
    linear: bool
    """Whether a term needs the sum of the logits or their number."""


class Block(NamedTuple):
    """``BLOCK``: rows and classes of a tile, and the type of all arithmetic."""

    n: int
    k: int
    acc: tl.dtype
    class_first: bool
    align: int
    """What the rows' strides and their number of classes are multiples of."""
    lanes: int
    vector: int
    """See :mod:`anl_kernels.backends.triton.lanes`."""


def strided(view: RowView) -> Strided:
    """A view of rows."""
    return Strided(view.tensor, *view.tensor.stride())


def written(tensor: Tensor) -> Strided:
    """A tensor to be written."""
    return strided(writable_rows(tensor))


def labelled(view: RowView, target: Tensor, request: RowRequest) -> dict[str, Any]:
    """The logits and their labels."""
    return {"Z": strided(view), "Y": target.reshape(-1), "IGNORE": request.ignore_index}


def scale_of(row_scale: Tensor) -> tuple[Tensor, int]:
    """A factor for every row, or one for all: (tensor, stride)."""
    return (row_scale, 0) if row_scale.dim() == 0 else (row_scale.reshape(-1), 1)


def outputs_of(outputs: RowOutputs) -> dict[str, Any]:
    """Where results go, by name; None for what is not wanted."""
    nothing = Strided(None, 0, 0, 0)
    return {
        "OUT": Outputs._make(outputs[3:]),
        "GRAD": nothing if outputs.grad is None else written(outputs.grad),
        "PROBS": nothing if outputs.probs is None else written(outputs.probs),
    }


def sum_of(terms: Terms) -> dict[str, Any]:
    """The numbers of a sum of terms, and what is compiled in of it."""
    return {"P": split_numbers(terms), "TERMS": compiled(terms)}


@lru_cache(maxsize=256)
def compiled(terms: Terms) -> CompiledTerms:
    """What is compiled in of a sum of terms."""
    functors = [FUNCTORS[term.functor] for term in terms.terms]
    each, num_dense = [], 0
    for f, term in zip(functors, terms.terms, strict=True):
        balanced = isinstance(term, Balanced)
        each.append(CompiledTerm(f.phi, f.head, f.sum_kind, num_dense, balanced, _hash(f)))
        num_dense += f.is_dense
    linear = any(f.sum_kind.value == AFFINE.value or f.counts for f in functors)
    return CompiledTerms(tuple(each), num_dense, linear)


def _hash(functor: Functor) -> int:
    key = "".join(getattr(part, "cache_key", "") for part in (functor.phi, functor.head))
    return int(hashlib.sha256(key.encode()).hexdigest()[:15], 16)


@lru_cache(maxsize=256)
def split_numbers(terms: Terms) -> Numbers:
    """Weights and scalars of the terms: see :func:`split`."""
    return split(encode(terms)[1][: (1 + NUM_SCALARS) * len(terms)])


def split(numbers: Sequence[float]) -> Numbers:
    """Run-time numbers as leading and trailing float32 parts: what ``numerics.scalar`` reads."""
    exact = torch.tensor(numbers, dtype=torch.float64)
    leading = exact.float().double()
    trailing = (exact - leading).nan_to_num()  # inf - inf
    return tuple(leading.tolist()), tuple(trailing.tolist())


def launch(kernel: Any, plan: Plan, view: RowView, *grid: int, **arguments: Any) -> None:
    """Run a kernel in the blocks of a plan. Without a grid, programs share the rows."""
    B, K, M = view.shape
    grid = grid or (triton.cdiv(B * M, plan.block_n),)
    if 0 in grid:
        return
    tensors = [given for given in arguments.values() if isinstance(given, Strided)]
    block = block_of(plan, view, tensors)
    with on_device(view.tensor):
        # Contracting a * b + c into one rounding is what the tests' error bounds were earned with;
        # the default of this option changes between Triton releases.
        kernel[grid](
            **arguments,
            SHAPE=Shape(B * M, K, M),
            BLOCK=block,
            num_warps=plan.num_warps,
            enable_fp_fusion=True,
        )


def block_of(plan: Plan, view: RowView, tensors: list[Strided]) -> Block:
    """The blocks of a plan for the rows of a view, and what is true of all tensors of a launch."""
    acc = tl.float64 if view.tensor.dtype == torch.float64 else tl.float32
    given = [tensor for tensor in tensors if tensor.data is not None]
    widest = VECTOR_BYTES // view.tensor.itemsize
    alignments = [_alignment(tensor, view.shape) for tensor in given]
    align = math.gcd(widest, view.shape[1], *alignments)
    lanes = min(plan.lanes or plan.block_k, plan.block_k)
    vector = min(align, plan.block_k // lanes)
    return Block(plan.block_n, plan.block_k, acc, view.class_first, align, lanes, vector)


def _alignment(tensor: Strided, shape: tuple[int, int, int]) -> int:
    """Up to 16 bytes of classes that every row begins at a multiple of, in a count of classes.

    Triton takes a pointer to be a multiple of 16 bytes or of nothing.
    """
    B, _, M = shape
    data = tensor.data
    if data is None or tensor.stride_k != 1 or data.data_ptr() % VECTOR_BYTES:
        return 1
    strides = (tensor.stride_b if B > 1 else 0, tensor.stride_m if M > 1 else 0)
    return math.gcd(VECTOR_BYTES // data.itemsize, *strides)


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
