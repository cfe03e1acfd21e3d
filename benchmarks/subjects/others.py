"""What others offer for given logits: robust losses by PyTorch's own means, and cross entropy.

The calls follow the packages' published interfaces; nothing of theirs is here. A package that is
not installed, or that cannot run here, raises, and its row says so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module

import torch
import torch.nn.functional as F

from benchmarks.clocks import Step
from benchmarks.inputs import Inputs
from benchmarks.peers import careful_anl, careful_apl, official_anl_by_rows, official_apl
from benchmarks.subjects.base import (
    Criterion,
    compiled_alone,
    loss_and_gradient,
    loss_over_gradient,
    subject,
)
from benchmarks.timing import Prepare


@subject("F.cross_entropy (does less)")
def cross_entropy(inputs: Inputs) -> Prepare:
    """PyTorch's plain cross entropy, which ANL-CE replaces."""
    return loss_and_gradient(F.cross_entropy, inputs)


@subject("torch.compile of F.cross_entropy (does less)")
def compiled_cross_entropy(inputs: Inputs) -> Prepare:
    """The compiler on plain cross entropy."""
    return loss_and_gradient(compiled_alone(F.cross_entropy), inputs)


@subject("well-written ANL, eager")
def careful(inputs: Inputs) -> Prepare:
    """ANL with no more tensors than eager PyTorch needs."""
    return eager(careful_anl, inputs, careful_bytes_of_logit)


@subject("torch.compile of well-written ANL")
def compiled(inputs: Inputs) -> Prepare:
    """The compiler on the same."""
    return loss_and_gradient(compiled_alone(careful_anl), inputs)


@subject("official ANL, eager")
def official(inputs: Inputs) -> Prepare:
    """The papers' way, where its memory leaves the other subjects theirs."""
    return eager(official_anl_by_rows, inputs, official_bytes_of_logit)


@subject("torch.compile of official ANL")
def compiled_official(inputs: Inputs) -> Prepare:
    """The compiler on the papers' way, as a user's first step would be."""
    return loss_and_gradient(compiled_alone(official_anl_by_rows), inputs)


@subject("well-written APL, eager")
def careful_apl_eager(inputs: Inputs) -> Prepare:
    """Active Passive Loss with no more tensors than eager PyTorch needs."""
    return eager(careful_apl, inputs, careful_bytes_of_logit)


@subject("torch.compile of well-written APL")
def compiled_apl(inputs: Inputs) -> Prepare:
    """The compiler on the same."""
    return loss_and_gradient(compiled_alone(careful_apl), inputs)


@subject("official APL, eager")
def official_apl_eager(inputs: Inputs) -> Prepare:
    """The papers' way."""
    return eager(official_apl, inputs, official_bytes_of_logit)


@subject("Liger cross entropy (does less)")
def liger(inputs: Inputs) -> Prepare:
    """liger_kernel's plain cross entropy; it needs a GPU.

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


@subject("flash-attn cross entropy (does less)", "cuda")
def flash_attn(inputs: Inputs) -> Prepare:
    """flash_attn's plain cross entropy of rows; their mean is taken outside of it."""
    cross_entropy_loss = import_module("flash_attn.ops.triton.cross_entropy").cross_entropy_loss

    def criterion(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        losses, _ = cross_entropy_loss(logits, target)
        return losses.mean()

    return loss_and_gradient(criterion, inputs)


def official_bytes_of_logit(size: int) -> int:
    """What the official code takes at its peak: 2 one-hots of int64, 8 tensors like the logits."""
    return 2 * 8 + 8 * size


def careful_bytes_of_logit(size: int) -> int:
    """Five tensors of float32, and the gradient."""
    return 5 * 4 + size


def eager(criterion: Criterion, inputs: Inputs, bytes_of_logit: Callable[[int], int]) -> Prepare:
    """An eager criterion, where its memory leaves the other subjects theirs."""
    problem, leaf = inputs.problem, inputs.leaves[0][0]
    if leaf.is_cuda:
        _leave_room(problem.rows * problem.classes * bytes_of_logit(leaf.element_size()))
    return loss_and_gradient(criterion, inputs)


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
