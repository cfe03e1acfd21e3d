"""The library, and the roof it is measured against."""

from __future__ import annotations

from functools import partial

import anl_kernels as ak
from benchmarks.inputs import Inputs
from benchmarks.subjects.base import (
    loss_and_gradient,
    loss_over_gradient,
    on_backend,
    subject,
)
from benchmarks.timing import Prepare

_anl_inplace = partial(ak.anl, inplace=True)


@subject("anl_kernels", backend="auto")
def ours(inputs: Inputs) -> Prepare:
    """The library, one pass."""
    return loss_and_gradient(ak.anl, inputs)


@subject("anl_kernels, inplace=True", backend="auto")
def ours_inplace(inputs: Inputs) -> Prepare:
    """The library with the gradient in the logits' memory: nothing is allocated."""
    return loss_over_gradient(_anl_inplace, inputs)


@subject("anl_kernels, Triton", "cuda", backend="triton")
def triton(inputs: Inputs) -> Prepare:
    """The library's Triton kernels, whatever "auto" takes."""
    return on_backend("triton", ours(inputs))


@subject("anl_kernels, Triton, inplace=True", "cuda", backend="triton")
def triton_inplace(inputs: Inputs) -> Prepare:
    """The library's Triton kernels in place."""
    return on_backend("triton", ours_inplace(inputs))


@subject("anl_kernels, CUDA C++", "cuda", backend="cuda")
def cuda(inputs: Inputs) -> Prepare:
    """The library's CUDA C++ kernels, whatever "auto" takes."""
    return on_backend("cuda", ours(inputs))


@subject("anl_kernels, CUDA C++, inplace=True", "cuda", backend="cuda")
def cuda_inplace(inputs: Inputs) -> Prepare:
    """The library's CUDA C++ kernels in place."""
    return on_backend("cuda", ours_inplace(inputs))


@subject("copy of the logits")
def copy(inputs: Inputs) -> Prepare:
    """The roof: one read and one write of the logits' size, into memory that is mapped."""
    sources = [logits.detach() for logits in inputs.logits]
    return lambda i: lambda: inputs.spare[i].copy_(sources[i])
