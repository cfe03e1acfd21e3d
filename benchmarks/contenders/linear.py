"""The head and the loss together: what a classifier's last layer costs with each of them.

The calls follow the packages' published interfaces; see peers.py.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import anl_kernels as ak
from benchmarks.contenders.base import (
    Criterion,
    contender,
    loss_and_gradient,
    register,
)
from benchmarks.contenders.formulas import careful_anl, official_anl
from benchmarks.contenders.library import anl_inplace, anl_terms
from benchmarks.contenders.peers import (
    careful_bytes_of_logit,
    eager,
    official_bytes_of_logit,
)
from benchmarks.inputs import Inputs
from benchmarks.timing import Prepare

CHUNKS = {"cpu": (8, 16, 32, 64, 128, 256), "cuda": (64, 128, 256, 512, 1024)}
"""Sizes of a chunk that are compared, in MiB of logits: about each device's default."""


def fused(hidden: Tensor, weight: Tensor, target: Tensor, **options: Any) -> Tensor:
    """The library's head and loss in one."""
    terms = anl_terms(weight.shape[0])
    return ak.linear_robust_loss(  # type: ignore[return-value]
        hidden, weight, target, terms, **options
    )


def fused_narrow(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """The same with sums over chunks in the dtype of the weight."""
    return fused(hidden, weight, target, accum_dtype=weight.dtype)


def after_head(criterion: Criterion) -> Criterion:
    """The criterion of the logits that the head gives."""

    def of_hidden(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return criterion(F.linear(hidden, weight), target)

    return of_hidden


# The head's backward reads its inputs alone, so that its output may become the gradient.
unfused: Criterion = after_head(anl_inplace)
careful_after_head: Criterion = after_head(careful_anl)

# What the library computes rounds as the head's products do.
_anl: dict[str, Any] = {"backend": "auto", "truth": careful_after_head, "rounds": True}


@contender("the three matrix products")
def products(inputs: Inputs) -> Prepare:
    """The roofline: logits, and both gradients of a given one of the logits."""
    hidden, weight = (leaf.detach() for leaf in inputs.leaves[0])
    gradient = F.linear(hidden, weight)

    def compute(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return F.linear(hidden, weight), gradient @ weight, gradient.t() @ hidden

    return lambda i: partial(compute, *(leaf.detach() for leaf in inputs.leaves[i]))


# Over chunks of rows, so that the logits never exist as a whole.
register("linear_fused", "anl_kernels, head fused", fused, **_anl)
# The least memory in 16 bits: the weight's gradient needs no sum in float32 beside it.
register(
    "linear_fused_narrow", "anl_kernels, head fused, narrow sums", fused_narrow, "cuda", **_anl
)
register("linear_unfused", "anl_kernels, after the head", unfused, **_anl)
register(
    "linear_unfused_cross_entropy", "head, then F.cross_entropy (does less)",
    after_head(F.cross_entropy),
)  # fmt: skip
register(
    "linear_careful", "head, then well-written ANL, eager", careful_after_head,
    take=partial(eager, bytes_of_logit=careful_bytes_of_logit),
)  # fmt: skip
# The compiler on both at once; the products remain PyTorch's calls.
register(
    "linear_compiled", "torch.compile of head and well-written ANL", careful_after_head,
    compiled=True,
)  # fmt: skip
register(
    "linear_official", "head, then official ANL, eager", after_head(official_anl),
    take=partial(eager, bytes_of_logit=official_bytes_of_logit),
)  # fmt: skip
# Without options it is the head and then cross entropy.
TORCH = "torch.nn.functional:linear_cross_entropy"
register("linear_torch", "F.linear_cross_entropy (does less)", TORCH)


@contender("F.linear_cross_entropy, chunked (does less)")
def linear_torch_chunked(inputs: Inputs) -> Prepare:
    """PyTorch's own over chunks of rows, so that the logits never exist as a whole.

    Its options' defaults, which for float32 on a CPU and for bfloat16 on a GPU are the policy of
    the least memory, "compact", and chunks whose logits take half as much as the hidden state.
    """
    options = torch.nn.LinearCrossEntropyOptions()
    return loss_and_gradient(partial(F.linear_cross_entropy, options=options), inputs)


# Over chunks of rows; it needs a GPU, and waits for it to count rows.
register(
    "linear_liger", "Liger fused linear cross entropy (does less)",
    "liger_kernel.transformers.functional:liger_fused_linear_cross_entropy",
)  # fmt: skip


@contender("cut_cross_entropy (does less)")
def linear_cce(inputs: Inputs) -> Prepare:
    """Apple's: on a GPU its kernel, which wants 16 bits and leaves out tiny gradients.

    On a CPU what it has for machines without one, through torch.compile.
    """
    linear_cross_entropy = import_module("cut_cross_entropy").linear_cross_entropy
    if inputs.problem.device == "cpu":
        linear_cross_entropy = partial(linear_cross_entropy, impl="torch_compile")
    return loss_and_gradient(linear_cross_entropy, inputs)


@contender("QuACK chunked linear cross entropy (does less)", "cuda")
def linear_quack(inputs: Inputs) -> Prepare:
    """quack's, over chunks of rows."""
    chunked = import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
    return loss_and_gradient(partial(chunked, reduction="mean"), inputs)


def _register(mebibytes: int) -> str:
    """A contender whose chunks of logits take so much; its name."""
    name, label = f"linear_fused_{mebibytes}mib", f"anl_kernels, chunks of {mebibytes} MiB"
    devices = (device for device, sizes in CHUNKS.items() if mebibytes in sizes)
    register(name, label, partial(fused, chunk_bytes=mebibytes << 20), *devices, **_anl)
    return name


BY_CHUNK = tuple(map(_register, sorted({size for sizes in CHUNKS.values() for size in sizes})))
"""The contenders of these sizes."""
