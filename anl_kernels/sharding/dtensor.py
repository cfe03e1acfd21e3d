"""DTensors: how one lies over ranks, in the words of the rest of the package."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import Parameter

from anl_kernels.sharding.shards import ClassShards

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_PLAIN = (Tensor, Parameter)


def local_classes(
    name: str, tensor: Tensor, dim: int, group: ProcessGroup | ClassShards | None
) -> tuple[Tensor, ClassShards | None]:
    """This rank's part of a tensor with classes in ``dim``, and how they are shared, if they are.

    Raises:
        ValueError: a DTensor is sharded on something else, or on classes more than once, or a
            group was given beside it; or the group's sizes are not the tensor's.
    """
    if not is_dtensor(tensor):
        return tensor, _given_shards(name, tensor, dim, group)
    if group is not None:
        raise ValueError(
            f"process_group must be None for {name} that are a DTensor, which says itself how its "
            f"classes are shared; or pass {name}.to_local()"
        )
    from torch.distributed.tensor import Shard

    given: Any = tensor
    sharded_by = [i for i, place in enumerate(given.placements) if place == Shard(dim)]
    others = [place for place in given.placements if place != Shard(dim)]
    if len(sharded_by) > 1 or not all(place.is_replicate() for place in others):
        raise ValueError(
            f"{name} must be replicated, or sharded once, on dimension {dim} (the classes), got a "
            f"DTensor with placements {given.placements}; redistribute it, or pass the rows of "
            f"this rank as {name}.to_local() with process_group"
        )
    shards = None
    if sharded_by:
        ranks = given.device_mesh.get_group(sharded_by[0])
        shards = ClassShards.chunked(ranks, given.shape[dim])
    return given.to_local(), shards


def replicated(name: str, tensor: Tensor) -> Tensor:
    """A tensor that all ranks hold alike, as a plain one; raise ValueError if they do not."""
    if not is_dtensor(tensor):
        return tensor
    given: Any = tensor
    if not all(place.is_replicate() for place in given.placements):
        raise ValueError(
            f"{name} must be replicated where classes are sharded, got a DTensor with placements "
            f"{given.placements}; call {name}.redistribute(placements=[Replicate()]) first"
        )
    return given.to_local()


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, without importing what defines them."""
    if type(tensor) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _given_shards(
    name: str, tensor: Tensor, dim: int, group: ProcessGroup | ClassShards | None
) -> ClassShards | None:
    if group is None:
        return None
    if not isinstance(group, ClassShards):
        return ClassShards.exchanged(group, tensor.shape[dim], tensor.device)
    if group.num_here != tensor.shape[dim]:
        raise ValueError(
            f"process_group: rank {group.rank} has {group.num_here} of the classes (sizes are "
            f"{group.sizes}), but its {name} have {tensor.shape[dim]}"
        )
    return group
