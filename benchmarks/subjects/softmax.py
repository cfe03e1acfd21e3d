"""Softmax by the library and by others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

import anl_kernels as ak
from benchmarks.clocks import Step
from benchmarks.inputs import Inputs
from benchmarks.subjects.base import Criterion, compiled_alone, on_backend, subject
from benchmarks.timing import Prepare

Softmax = Callable[[Tensor], Tensor]

_ours: Softmax = partial(ak.softmax, dim=1)
_torch: Softmax = partial(torch.softmax, dim=1)


def softmax_and_gradient(function: Softmax, inputs: Inputs) -> Prepare:
    """The phase that the problem asks for; the upstream gradient is of the logits' size."""

    def prepare(i: int) -> Step:
        logits, upstream = inputs.logits[i], inputs.spare[i]

        def both() -> None:
            function(logits).backward(upstream)
            logits.grad = None

        def inference() -> None:
            with torch.no_grad():
                function(logits)

        return {"both": both, "inference": inference}[inputs.problem.phase]

    return prepare


def _weighed(function: Softmax) -> Criterion:
    """A number that depends on every probability, to check the gradient by."""

    def criterion(logits: Tensor, target: Tensor) -> Tensor:
        probs = function(logits)
        upstream = torch.arange(probs.shape[1], device=probs.device).cos()
        return (probs * upstream.to(probs.dtype)).sum(dim=1, dtype=torch.float64).mean()

    return criterion


_facts = {"criterion": _weighed(_ours), "truth": _weighed(_torch), "rounds": True}


@subject("anl_kernels", backend="auto", **_facts)
def softmax(inputs: Inputs) -> Prepare:
    """The library's softmax."""
    return softmax_and_gradient(_ours, inputs)


@subject("anl_kernels, Triton", "cuda", backend="triton", **_facts)
def softmax_triton(inputs: Inputs) -> Prepare:
    """On its Triton kernels."""
    return on_backend("triton", softmax(inputs))


@subject("anl_kernels, CUDA C++", "cuda", backend="cuda", **_facts)
def softmax_cuda(inputs: Inputs) -> Prepare:
    """On its CUDA C++ kernels."""
    return on_backend("cuda", softmax(inputs))


@subject("torch.softmax")
def softmax_torch(inputs: Inputs) -> Prepare:
    """PyTorch's own."""
    return softmax_and_gradient(_torch, inputs)


@subject("torch.compile of torch.softmax")
def softmax_compiled(inputs: Inputs) -> Prepare:
    """The compiler's."""
    return softmax_and_gradient(compiled_alone(_torch), inputs)


@subject("Liger softmax", "cuda")
def softmax_liger(inputs: Inputs) -> Prepare:
    """liger_kernel's, over the last dimension."""
    package = import_module("liger_kernel.transformers.functional")
    return softmax_and_gradient(package.liger_softmax, inputs)


@subject("QuACK softmax", "cuda")
def softmax_quack(inputs: Inputs) -> Prepare:
    """quack's, over the last dimension."""
    return softmax_and_gradient(import_module("quack.softmax").softmax, inputs)
