"""Softmax by the library and by others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import anl_kernels as ak
from benchmarks.clocks import Step
from benchmarks.contenders.base import Criterion, register
from benchmarks.contenders.peers import LIGER
from benchmarks.inputs import Inputs
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


_take: dict[str, Any] = {"take": softmax_and_gradient}
_facts: dict[str, Any] = _take | {
    "criterion": _weighed(_ours), "truth": _weighed(_torch), "rounds": True
}  # fmt: skip

register("softmax", "anl_kernels", _ours, backend="auto", **_facts)
register("softmax_triton", "anl_kernels, Triton", _ours, "cuda", backend="triton", **_facts)
register("softmax_cuda", "anl_kernels, CUDA C++", _ours, "cuda", backend="cuda", **_facts)
register("softmax_torch", "torch.softmax", _torch, **_take)
register("softmax_compiled", "torch.compile of torch.softmax", _torch, compiled=True, **_take)
# Over the last dimension.
register("softmax_liger", "Liger softmax", f"{LIGER}:liger_softmax", "cuda", **_take)
register("softmax_quack", "QuACK softmax", "quack.softmax:softmax", "cuda", **_take)
