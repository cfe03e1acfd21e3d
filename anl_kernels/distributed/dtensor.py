"""DTensors: how one lies over ranks, in the words of the rest of the package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from anl_kernels.distributed.rows import RowShards, shifted, spread
from anl_kernels.distributed.shards import ClassShards
from anl_kernels.tracing import PLAIN

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Part(NamedTuple):
    """What a rank has of a tensor."""

    here: Tensor
    shards: ClassShards | None
    """How its classes are shared, if they are."""
    rows: RowShards | None
    """How its rows are, if they are."""


def local_part(
    name: str, tensor: Tensor, dim: int, group: ProcessGroup | ClassShards | None
) -> Part:
    """This rank's part of a tensor of rows with classes in ``dim``.

    Raises:
        ValueError: a DTensor is a partial sum, or its classes are sharded more than once or not in
            order, or a group was given beside it; or the group's sizes are not the tensor's.
    """
    if not is_dtensor(tensor):
        return Part(tensor, given_shards(name, tensor, dim, group), None)
    _check_no_group(name, group)
    given: Any = tensor
    by_classes = _sharding(name, given, dim)
    kept = [(i in by_classes) or place.is_replicate() for i, place in enumerate(given.placements)]
    return Part(
        given.to_local(), _class_shards(given, dim, by_classes), _row_shards(given, dim, kept)
    )


def local_parameter(
    name: str, tensor: Tensor, group: ProcessGroup | ClassShards | None, rows: RowShards | None
) -> tuple[Tensor, ClassShards | None]:
    """This rank's part of a tensor of parameters with classes in dimension 0.

    Raises:
        ValueError: as :func:`local_part`, or it is sharded on something else; or over the ranks
            over which rows are.
    """
    if not is_dtensor(tensor):
        here, shards = tensor, given_shards(name, tensor, 0, group)
    else:
        _check_no_group(name, group)
        given: Any = tensor
        by_classes = _sharding(name, given, 0)
        for i, place in enumerate(given.placements):
            if i not in by_classes and not place.is_replicate():
                raise ValueError(
                    f"{name} must be replicated, or sharded once, on dimension 0 (the classes), "
                    f"got a DTensor with placements {given.placements}; call {name}.redistribute"
                )
        _check_meshes(name, given, by_classes, rows)
        here, shards = given.to_local(), _class_shards(given, 0, by_classes)
    return (here if rows is None else rows.shared(here)), shards


def local_hidden(hidden: Tensor) -> tuple[Tensor, RowShards | None]:
    """The rows here of hidden states, (..., D), and how rows are shared, if they are.

    Raises:
        ValueError: a DTensor is a partial sum, or sharded on D.
    """
    if not is_dtensor(hidden):
        return hidden, None
    given: Any = hidden
    last = given.dim() - 1
    if _sharding("hidden", given, last):
        raise ValueError(
            f"hidden must have whole rows, got a DTensor with placements {given.placements}, "
            f"sharded on its last dimension; call hidden.redistribute first"
        )
    kept = [place.is_replicate() for place in given.placements]
    return given.to_local(), _row_shards(given, last, kept)


def on_local_rows(
    name: str, tensor: Tensor, dim: int, function: Callable[[Tensor], Tensor]
) -> Tensor:
    """A function of rows, of those here of a DTensor, as a DTensor that lies as it does.

    Raises:
        ValueError: it is sharded on ``dim``, the rows' own, or a partial sum.
    """
    given: Any = tensor
    if _sharding(name, given, dim):
        raise ValueError(
            f"{name} must have all classes (dimension {dim}) on every rank, got a DTensor with "
            f"placements {given.placements}; call {name}.redistribute first"
        )
    here = function(given.to_local())
    return spread(here, given.device_mesh, tuple(given.placements), given.shape)


def of_rows(name: str, tensor: Tensor, rows: RowShards | None) -> Tensor:
    """The part for the rows here of a tensor of rows; raise ValueError if it lies otherwise."""
    return replicated(name, tensor) if rows is None else rows.here(name, tensor)


def of_all(
    name: str, tensor: Tensor, rows: RowShards | None, device: torch.device | None = None
) -> Tensor:
    """A tensor that all ranks hold alike, for the rows here; raise ValueError if they do not.

    On a device, if one is given: that of the ranks' exchanges.
    """
    here = replicated(name, tensor)
    if rows is None:
        return here
    return rows.shared(here if device is None else here.to(device))


def replicated(name: str, tensor: Tensor) -> Tensor:
    """A tensor that all ranks hold alike, as a plain one; raise ValueError if they do not."""
    if not is_dtensor(tensor):
        return tensor
    given: Any = tensor
    if not all(place.is_replicate() for place in given.placements):
        raise ValueError(
            f"{name} must be replicated, the same on all ranks, got a DTensor with placements "
            f"{given.placements}; call {name}.redistribute(placements=[Replicate()]) first"
        )
    return given.to_local()


class AmongDTensors(torch.autograd.Function):
    """``apply(loss)``: a plain loss that may be added to a DTensor, whose gradient is one then."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        """Hand through."""
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Tensor:
        """Hand through, as a plain tensor."""
        return grad.full_tensor() if is_dtensor(grad) else grad


def spread_classes(
    here: Tensor, logits: Tensor, num_classes: int, rows: RowShards | None
) -> Tensor:
    """This rank's part of a tensor of the logits' kind, without padding, as a DTensor like them."""
    given: Any = logits
    dim = 0 if given.dim() == 1 else 1
    shape = (*given.shape[:dim], num_classes, *given.shape[dim + 1 :])
    by_classes = _sharding("logits", given, dim)
    if by_classes and num_classes != given.shape[dim]:
        raise ValueError(
            f"return_aux cannot hold 'probs' with num_classes={num_classes} where ranks share rows "
            f"and classes: the {num_classes} classes of {given.shape[dim]} columns do not lie as "
            f"those of a DTensor would"
        )
    return spread(here, given.device_mesh, tuple(given.placements), shape)


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, without importing what defines them."""
    if type(tensor) in PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def given_shards(
    name: str, tensor: Tensor, dim: int, group: ProcessGroup | ClassShards | None
) -> ClassShards | None:
    """How the ranks of a group share the classes of a plain tensor; None without a group."""
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


def _check_no_group(name: str, group: ProcessGroup | ClassShards | None) -> None:
    if group is not None:
        raise ValueError(
            f"process_group must be None for {name} that are a DTensor, which says itself how its "
            f"rows and classes are shared"
        )


def _sharding(name: str, given: Any, dim: int) -> list[int]:
    """The mesh dimensions that shard ``dim``; raise ValueError if the tensor cannot be read so."""
    from torch.distributed.tensor import Shard

    found = []
    for i, place in enumerate(given.placements):
        if place.is_partial():
            raise ValueError(
                f"{name} must not be a partial sum, got a DTensor with placements "
                f"{given.placements}; call {name}.redistribute to make it Replicate() or Shard(...)"
            )
        if not place.is_replicate() and place.dim == dim:
            found.append(i)
    # By type: in some releases a strided sharding equals a plain one.
    if len(found) > 1 or any(type(given.placements[i]) is not Shard for i in found):
        raise ValueError(
            f"{name} must be sharded on dimension {dim} once and in order, if at all, got a "
            f"DTensor with placements {given.placements}; call {name}.redistribute first"
        )
    return found


def _class_shards(given: Any, dim: int, by_classes: list[int]) -> ClassShards | None:
    if not by_classes:
        return None
    return ClassShards.chunked(given.device_mesh.get_group(by_classes[0]), given.shape[dim])


def _row_shards(given: Any, dim: int, kept: list[bool]) -> RowShards | None:
    """Rows as a tensor without ``dim`` has them; ``kept`` says where they are not shared."""
    if all(kept):
        return None
    from torch.distributed.tensor import Replicate

    pairs = zip(given.placements, kept, strict=True)
    placements = tuple(Replicate() if whole else place for place, whole in pairs)
    here = given.to_local().shape
    shapes = (torch.Size(full[:dim] + full[dim + 1 :]) for full in (given.shape, here))
    return RowShards(given.device_mesh, shifted(placements, dim, -1), *shapes)


def _check_meshes(name: str, given: Any, by_classes: list[int], rows: RowShards | None) -> None:
    if rows is None:
        return
    if given.device_mesh != rows.mesh:
        raise ValueError(
            f"{name} must be on the mesh of the rows, {rows.mesh}, got {given.device_mesh}"
        )
    if any(not rows.placements[i].is_replicate() for i in by_classes):
        raise ValueError(
            f"{name} must be replicated over the ranks that share rows, got a DTensor with "
            f"placements {given.placements} where the target has {rows.placements}: call "
            f"{name}.redistribute, or hidden.redistribute so that every rank that shares classes "
            f"has the same rows"
        )
