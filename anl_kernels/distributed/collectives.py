"""What ranks exchange, by torch.distributed: sums, and gathered tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def check_group(group: ProcessGroup) -> ProcessGroup:
    """Raise TypeError unless ``group`` is a process group that this process belongs to."""
    import torch.distributed as dist

    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"process_group must be a torch.distributed.ProcessGroup (a loss takes an "
            f"ak.ClassShards too), got {group!r}; call torch.distributed.init_process_group first, "
            f"and give a group that this process belongs to"
        )
    return group


def group_named(name: str) -> ProcessGroup:
    """The group of a name, which is how an operator is told of it.

    Not to be kept: a group that outlives its destruction takes the process down at its exit.
    """
    from torch.distributed.distributed_c10d import _resolve_process_group

    return _resolve_process_group(name)  # type: ignore[arg-type]


def gather(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Every rank's tensor, in the ranks' order: (W, ...). Not differentiable."""
    import torch.distributed as dist

    ranks = dist.get_world_size(group)
    out = tensor.new_empty((ranks * tensor.numel(),))
    # The name changed; torch 2.11 has the old one alone.
    gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather_into(out, tensor.detach().reshape(-1), group=group)
    return out.view(ranks, *tensor.shape)


def add_up_(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """Replace a tensor by its sum over the ranks. Not differentiable."""
    import torch.distributed as dist

    if tensor.is_contiguous():
        dist.all_reduce(tensor, group=group)
        return tensor
    return tensor.copy_(add_up_(tensor.contiguous(), group))


class SumOfShards(torch.autograd.Function):
    """``apply(tensor, group)``: the sum of what the ranks hold, of which each has a copy after.

    What follows is computed by every rank alike, so the gradient of a rank's part is the gradient
    of its copy. With :class:`CopyToShards`, each the derivative of the other, the derivatives of
    every order are those of one computation, not of one for each rank.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:
        """Add up."""
        ctx.group = group
        return add_up_(tensor.clone(memory_format=torch.contiguous_format), group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Hand through."""
        return CopyToShards.apply(grad, ctx.group), None


class CopyToShards(torch.autograd.Function):
    """``apply(tensor, group)``: a tensor that all ranks hold alike, used by each for its part.

    Its gradient is the sum over the ranks.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup) -> Tensor:
        """Hand through."""
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Add up."""
        return SumOfShards.apply(grad, ctx.group), None


def sum_of_batches(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over ranks whose losses are different ones: each rank's part enters all of them.

    So the gradients add up too: it is its own derivative.
    """
    return SumOfShards.apply(CopyToShards.apply(tensor, group), group)
