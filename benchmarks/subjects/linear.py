"""The head and the loss together: what a classifier's last layer costs with each of them.

The calls follow the packages' published interfaces; see others.py.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import anl_kernels as ak
from benchmarks.inputs import Inputs
from benchmarks.peers import careful_anl, official_anl
from benchmarks.subjects.base import (
    SUBJECTS,
    Criterion,
    Subject,
    compiled_alone,
    loss_and_gradient,
    subject,
)
from benchmarks.subjects.library import anl_inplace, anl_terms
from benchmarks.subjects.others import (
    careful_bytes_of_logit,
    eager,
    official_bytes_of_logit,
)
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


@subject("the three matrix products")
def products(inputs: Inputs) -> Prepare:
    """The roof: logits, and the gradients of hidden state and weight, of a given one of logits."""
    hidden, weight = (leaf.detach() for leaf in inputs.leaves[0])
    gradient = F.linear(hidden, weight)

    def compute(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return F.linear(hidden, weight), gradient @ weight, gradient.t() @ hidden

    return lambda i: partial(compute, *(leaf.detach() for leaf in inputs.leaves[i]))


@subject("anl_kernels, head fused", criterion=fused, **_anl)
def linear_fused(inputs: Inputs) -> Prepare:
    """The library over chunks of rows, so that the logits never exist as a whole."""
    return loss_and_gradient(fused, inputs)


@subject("anl_kernels, head fused, narrow sums", "cuda", criterion=fused_narrow, **_anl)
def linear_fused_narrow(inputs: Inputs) -> Prepare:
    """Its least memory in 16 bits: the weight's gradient needs no sum in float32 beside it."""
    return loss_and_gradient(fused_narrow, inputs)


@subject("anl_kernels, after the head", criterion=unfused, **_anl)
def linear_unfused(inputs: Inputs) -> Prepare:
    """The library on the head's output, which the gradient overwrites."""
    return loss_and_gradient(unfused, inputs)


@subject("head, then F.cross_entropy (does less)")
def linear_unfused_cross_entropy(inputs: Inputs) -> Prepare:
    """What most training loops do."""
    return loss_and_gradient(after_head(F.cross_entropy), inputs)


@subject("head, then well-written ANL, eager")
def linear_careful(inputs: Inputs) -> Prepare:
    """ANL with no more tensors than eager PyTorch needs."""
    return eager(careful_after_head, inputs, careful_bytes_of_logit)


@subject("torch.compile of head and well-written ANL")
def linear_compiled(inputs: Inputs) -> Prepare:
    """The compiler on both at once; the products remain PyTorch's calls."""
    return loss_and_gradient(compiled_alone(careful_after_head), inputs)


@subject("head, then official ANL, eager")
def linear_official(inputs: Inputs) -> Prepare:
    """The papers' way, where its memory leaves the other subjects theirs."""
    return eager(after_head(official_anl), inputs, official_bytes_of_logit)


@subject("F.linear_cross_entropy (does less)")
def linear_torch(inputs: Inputs) -> Prepare:
    """PyTorch's own without options, which is the head and then cross entropy."""
    return loss_and_gradient(F.linear_cross_entropy, inputs)


@subject("F.linear_cross_entropy, chunked (does less)")
def linear_torch_chunked(inputs: Inputs) -> Prepare:
    """PyTorch's own over chunks of rows, so that the logits never exist as a whole.

    Its options' defaults, which for float32 on a CPU and for bfloat16 on a GPU are the policy of
    the least memory, "compact", and chunks whose logits take half as much as the hidden state.
    """
    options = torch.nn.LinearCrossEntropyOptions()
    return loss_and_gradient(partial(F.linear_cross_entropy, options=options), inputs)


@subject("Liger fused linear cross entropy (does less)")
def linear_liger(inputs: Inputs) -> Prepare:
    """liger_kernel's, over chunks of rows; it needs a GPU, and waits for it to count rows."""
    package = import_module("liger_kernel.transformers.functional")
    return loss_and_gradient(package.liger_fused_linear_cross_entropy, inputs)


@subject("cut_cross_entropy (does less)")
def linear_cce(inputs: Inputs) -> Prepare:
    """Apple's: on a GPU its kernel, which wants 16 bits and leaves out tiny gradients.

    On a CPU what it has for machines without one, through torch.compile.
    """
    linear_cross_entropy = import_module("cut_cross_entropy").linear_cross_entropy
    if inputs.problem.device == "cpu":
        linear_cross_entropy = partial(linear_cross_entropy, impl="torch_compile")
    return loss_and_gradient(linear_cross_entropy, inputs)


@subject("QuACK chunked linear cross entropy (does less)", "cuda")
def linear_quack(inputs: Inputs) -> Prepare:
    """quack's, over chunks of rows."""
    chunked = import_module("quack.linear_cross_entropy").chunked_linear_cross_entropy
    return loss_and_gradient(partial(chunked, reduction="mean"), inputs)


def _register(mebibytes: int) -> str:
    """A subject whose chunks of logits take so much; its name."""
    name = f"linear_fused_{mebibytes}mib"
    criterion = partial(fused, chunk_bytes=mebibytes << 20)
    SUBJECTS[name] = Subject(
        f"anl_kernels, chunks of {mebibytes} MiB",
        partial(loss_and_gradient, criterion),
        tuple(device for device, sizes in CHUNKS.items() if mebibytes in sizes),
        criterion=criterion,
        **_anl,
    )
    return name


BY_CHUNK = tuple(map(_register, sorted({size for sizes in CHUNKS.values() for size in sizes})))
"""The subjects of these sizes."""
