"""What others offer: ANL by PyTorch's own means, and plain cross entropy, which does less.

The calls follow the packages' published interfaces; nothing of theirs is here.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.clocks import Step
from benchmarks.inputs import Inputs
from benchmarks.peers import careful_anl, official_anl
from benchmarks.subjects.base import loss_and_gradient, loss_over_gradient, subject
from benchmarks.timing import Prepare


@subject("F.cross_entropy (does less)")
def cross_entropy(inputs: Inputs) -> Prepare:
    """PyTorch's plain cross entropy, which ANL-CE replaces."""
    return loss_and_gradient(F.cross_entropy, inputs)


@subject("torch.compile of ANL")
def compiled(inputs: Inputs) -> Prepare:
    """The compiler on a well-written ANL.

    In its default mode: max-autotune concerns matrix products above all, of which there is none.
    """
    return loss_and_gradient(torch.compile(careful_anl, dynamic=False, fullgraph=True), inputs)


@subject("official ANL, eager")
def official(inputs: Inputs) -> Prepare:
    """The papers' way, where its memory leaves the other subjects theirs."""
    if inputs.target.is_cuda:
        _leave_room(official_bytes(inputs.logits[0]))
    return loss_and_gradient(official_anl, inputs)


@subject("torch.compile of F.cross_entropy (does less)", "cuda")
def compiled_cross_entropy(inputs: Inputs) -> Prepare:
    """The compiler on plain cross entropy."""

    # A function of its own: compiled code is kept with the function it came from.
    def criterion(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target)

    return loss_and_gradient(torch.compile(criterion, dynamic=False, fullgraph=True), inputs)


@subject("Liger cross entropy (does less)", "cuda")
def liger(inputs: Inputs) -> Prepare:
    """liger_kernel's plain cross entropy.

    It puts the gradient where the logits were, whoever else needs them; like the library's
    ``inplace=True`` it is given logits of its own, which are restored outside the timed steps. It
    waits for the GPU, to count rows, check labels and look at the upstream gradient; its time has
    that waiting.
    """
    package = import_module("liger_kernel.transformers.functional")
    return loss_over_gradient(package.liger_cross_entropy, inputs)


@subject("QuACK cross entropy (does less)", "cuda")
def quack(inputs: Inputs) -> Prepare:
    """quack's plain cross entropy through autograd: its backward reads the logits again."""
    package = import_module("quack.cross_entropy")
    return loss_and_gradient(partial(package.cross_entropy, reduction="mean"), inputs)


@subject("QuACK cross entropy, one pass (does less)", "cuda")
def quack_one_pass(inputs: Inputs) -> Prepare:
    """quack's kernel that writes the gradient beside the loss: no autograd, no mean."""
    forward = import_module("quack.cross_entropy").cross_entropy_fwd

    def prepare(i: int) -> Step:
        logits = inputs.logits[i].detach()
        return lambda: forward(logits, inputs.target, return_dx=True)

    return prepare


def official_bytes(logits: Tensor) -> int:
    """What the official code takes at its peak: 2 one-hots of int64, 8 tensors like the logits."""
    return logits.numel() * (2 * 8 + 8 * logits.element_size())


def _leave_room(wanted: int) -> None:
    """Refuse to take over half of the GPU.

    An allocator that has to give memory back to serve one subject makes the next one wait.
    """
    _, total = torch.cuda.mem_get_info()
    if wanted > total / 2:
        raise MemoryError(
            f"needs about {wanted / 2**30:.0f} GiB beside its inputs, over half of this GPU's "
            f"{total / 2**30:.0f} GiB"
        )
