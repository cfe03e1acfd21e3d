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
from benchmarks.contenders.base import (
    Criterion,
    contender,
    loss_and_gradient,
    loss_over_gradient,
    register,
)
from benchmarks.contenders.formulas import (
    careful_anl,
    careful_apl,
    official_anl_by_rows,
    official_apl,
)
from benchmarks.inputs import Inputs
from benchmarks.timing import Prepare


def official_bytes_of_logit(size: int) -> int:
    """What the official code takes at its peak: 2 one-hots of int64, 8 tensors like the logits."""
    return 2 * 8 + 8 * size


def careful_bytes_of_logit(size: int) -> int:
    """Five tensors of float32, and the gradient."""
    return 5 * 4 + size


def eager(criterion: Criterion, inputs: Inputs, bytes_of_logit: Callable[[int], int]) -> Prepare:
    """An eager criterion, where its memory leaves the other contenders theirs."""
    problem, leaf = inputs.problem, inputs.leaves[0][0]
    if leaf.is_cuda:
        _leave_room(problem.rows * problem.classes * bytes_of_logit(leaf.element_size()))
    return loss_and_gradient(criterion, inputs)


def _leave_room(wanted: int) -> None:
    """Refuse to take over half of the GPU.

    An allocator that has to give memory back to serve one contender makes the next one wait.
    """
    _, total = torch.cuda.mem_get_info()
    if wanted > total / 2:
        raise MemoryError(
            f"needs about {wanted / 2**30:.0f} GiB beside its inputs, over half of this GPU's "
            f"{total / 2**30:.0f} GiB"
        )


_careful = partial(eager, bytes_of_logit=careful_bytes_of_logit)
_official = partial(eager, bytes_of_logit=official_bytes_of_logit)
LIGER = "liger_kernel.transformers.functional"

# Modules, like ours.
register("cross_entropy", "nn.CrossEntropyLoss (does less)", torch.nn.CrossEntropyLoss())
register(
    "compiled_cross_entropy", "torch.compile of F.cross_entropy (does less)", F.cross_entropy,
    compiled=True,
)  # fmt: skip
register("careful", "well-written ANL, eager", careful_anl, take=_careful)
register("compiled", "torch.compile of well-written ANL", careful_anl, compiled=True)
register("official", "official ANL, eager", official_anl_by_rows, take=_official)
register("compiled_official", "torch.compile of official ANL", official_anl_by_rows, compiled=True)
register("careful_apl_eager", "well-written APL, eager", careful_apl, take=_careful)
register("compiled_apl", "torch.compile of well-written APL", careful_apl, compiled=True)
register("official_apl_eager", "official APL, eager", official_apl, take=_official)
# It puts the gradient where the logits were, whoever else needs them; like the library's
# inplace=True it is given logits of its own. It needs a GPU and waits for it, to count rows, check
# labels and look at the upstream gradient; its time has that waiting.
register(
    "liger", "Liger cross entropy (does less)", f"{LIGER}:liger_cross_entropy",
    take=loss_over_gradient,
)  # fmt: skip


@contender("QuACK cross entropy (does less)", "cuda")
def quack(inputs: Inputs) -> Prepare:
    """quack's plain cross entropy through autograd: its backward reads the logits again."""
    package = import_module("quack.cross_entropy")
    return loss_and_gradient(partial(package.cross_entropy, reduction="mean"), inputs)


@contender("QuACK cross entropy, one pass (does less)", "cuda")
def quack_one_pass(inputs: Inputs) -> Prepare:
    """quack's kernel that writes the gradient beside the loss: no autograd, no mean."""
    forward = import_module("quack.cross_entropy").cross_entropy_fwd

    def prepare(i: int) -> Step:
        logits = inputs.logits[i].detach()
        return lambda: forward(logits, inputs.target, return_dx=True)

    return prepare


@contender("flash-attn cross entropy (does less)", "cuda")
def flash_attn(inputs: Inputs) -> Prepare:
    """flash_attn's plain cross entropy of rows; their mean is taken outside of it."""
    cross_entropy_loss = import_module("flash_attn.ops.triton.cross_entropy").cross_entropy_loss

    def criterion(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        losses, _ = cross_entropy_loss(logits, target)
        return losses.mean()

    return loss_and_gradient(criterion, inputs)
