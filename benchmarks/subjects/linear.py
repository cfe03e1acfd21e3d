"""The head and the loss together: what a classifier's last layer costs with each of them.

The calls follow the packages' published interfaces; see others.py.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.inputs import Inputs
from benchmarks.peers import careful_anl, official_anl
from benchmarks.subjects.base import Criterion, compiled_alone, loss_and_gradient, subject
from benchmarks.subjects.library import anl_inplace
from benchmarks.subjects.others import (
    careful_bytes_of_logit,
    eager,
    official_bytes_of_logit,
)
from benchmarks.timing import Prepare


def after_head(criterion: Criterion) -> Criterion:
    """The criterion of the logits that the head gives."""

    def of_hidden(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return criterion(F.linear(hidden, weight), target)

    return of_hidden


# The head's backward reads its inputs alone, so that its output may become the gradient.
unfused: Criterion = after_head(anl_inplace)
careful_after_head: Criterion = after_head(careful_anl)


@subject("the three matrix products")
def products(inputs: Inputs) -> Prepare:
    """The roof: logits, and the gradients of hidden state and weight, of a given one of logits."""
    hidden, weight = (leaf.detach() for leaf in inputs.leaves[0])
    gradient = F.linear(hidden, weight)

    def compute(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return F.linear(hidden, weight), gradient @ weight, gradient.t() @ hidden

    return lambda i: partial(compute, *(leaf.detach() for leaf in inputs.leaves[i]))


@subject(
    "head, then anl_kernels",
    backend="auto",
    criterion=unfused,
    truth=careful_after_head,
    rounds=True,  # as the head's products do
)
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
