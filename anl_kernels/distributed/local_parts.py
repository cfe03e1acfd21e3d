"""The part of each argument that this rank has, and results that lie over the ranks as it does."""

from __future__ import annotations

import sys
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from anl_kernels.distributed.class_shards import ClassShards
from anl_kernels.distributed.row_shards import RowShards, shifted, spread
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


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, without importing what defines them."""
    if type(tensor) in PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(
    name: str, tensor: Tensor, dim: int, group: ProcessGroup | ClassShards | None
) -> Part:
    """This rank's part of a tensor of rows with classes in ``dim``.

    Raises:
        ValueError: a DTensor is a partial sum, or its classes are sharded more than once or not in
            order, or a group was given beside it; or the group's sizes are not the tensor's.
    """
    if not is_dtensor(tensor):
        return Part(tensor, _given_shards(name, tensor, dim, group), None)
    if group is not None:
        raise ValueError(
            f"process_group must be None for {name} that are a DTensor, which says itself how its "
            f"rows and classes are shared"
        )
    given: Any = tensor
    at = _sharded_at(name, given, dim)
    shards = None
    if at is not None:
        shards = ClassShards.chunked(given.device_mesh.get_group(at), given.shape[dim])
    return Part(given.to_local(), shards, _row_shards(given, dim, at))


def whole_rows(
    name: str, tensor: Tensor, dim: int, group: ProcessGroup | None = None
) -> tuple[Tensor, RowShards | None]:
    """The rows here of a tensor, and how rows are shared, if they are.

    Raises:
        ValueError: as :func:`local_part`, or a DTensor is sharded on ``dim``, the rows' own.
    """
    here, shards, rows = local_part(name, tensor, dim, group)
    if shards is not None:
        raise _misplaced(name, tensor, f"have whole rows (dimension {dim}) on every rank")
    return here, rows


def local_parameter(
    name: str, tensor: Tensor, group: ProcessGroup | ClassShards | None, rows: RowShards | None
) -> tuple[Tensor, ClassShards | None]:
    """This rank's part of a tensor of parameters with classes in dimension 0.

    Raises:
        ValueError: as :func:`local_part`, or it is sharded on something else; or over the ranks
            over which rows are.
    """
    here, shards, others = local_part(name, tensor, 0, group)
    if others is not None:
        wanted = "be replicated, or sharded once, on dimension 0 (the classes)"
        raise _misplaced(name, tensor, wanted)
    if rows is None:
        return here, shards
    if is_dtensor(tensor):
        _check_beside(name, tensor, rows)
    return rows.shared(here), shards


def of_rows(name: str, tensor: Tensor, rows: RowShards | None) -> Tensor:
    """The part for the rows here of a tensor of rows; raise ValueError if it lies otherwise."""
    return _replicated(name, tensor) if rows is None else rows.here(name, tensor)


def of_all(
    name: str, tensor: Tensor, rows: RowShards | None, device: torch.device | None = None
) -> Tensor:
    """A tensor that all ranks hold alike, for the rows here; raise ValueError if they do not.

    On a device, if one is given: that of the ranks' exchanges.
    """
    here = _replicated(name, tensor)
    if rows is None:
        return here
    return rows.shared(here if device is None else here.to(device))


def warn_of_rounding(sample_weight: Tensor) -> None:
    """Say once that weights of rows have 16 bits, where FSDP2 may have cut them down to that.

    Of a cast nothing is to be seen afterwards, and one by the root of a model is made far from the
    loss. So whoever gives such weights on purpose beside ``fully_shard`` is told as well.
    """
    short = sample_weight.dtype in (torch.bfloat16, torch.float16)
    if short and _fsdp_in_use() and not torch.compiler.is_compiling():
        _warn(sample_weight.dtype)


def _fsdp_in_use() -> bool:
    """Whether anything in this process was given to fully_shard."""
    module = sys.modules.get("torch.distributed.fsdp")
    return module is not None and bool(module.FSDPModule.__subclasses__())


@cache
def _warn(dtype: torch.dtype) -> None:
    warnings.warn(
        f"sample_weight is {dtype} in a process that uses fully_shard: if you gave float32, a "
        f"MixedPrecisionPolicy has rounded it, as it rounds all floating inputs of a module's "
        f"forward; to keep float32 give fully_shard MixedPrecisionPolicy(..., "
        f"cast_forward_inputs=False) for each module whose forward takes sample_weight, and hand "
        f"the hidden states over in the dtype of the parameters",
        stacklevel=2,
    )


def spread_like(given: Any, here: Tensor) -> Tensor:
    """A result of a DTensor's shape, of which ranks have parts, as a DTensor that lies as it."""
    return spread(here, given.device_mesh, tuple(given.placements), given.shape)


def spread_classes(given: Any, here: Tensor, num_classes: int) -> Tensor:
    """As :func:`spread_like` of logits, whose columns from ``num_classes`` on were padding."""
    dim = 0 if given.dim() == 1 else 1
    if num_classes != given.shape[dim] and any(place.is_shard(dim) for place in given.placements):
        raise ValueError(
            f"return_aux cannot hold 'probs' with num_classes={num_classes} where ranks share rows "
            f"and classes: the {num_classes} classes of {given.shape[dim]} columns do not lie as "
            f"those of a DTensor would"
        )
    shape = (*given.shape[:dim], num_classes, *given.shape[dim + 1 :])
    return spread(here, given.device_mesh, tuple(given.placements), shape)


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


def _given_shards(
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


def _replicated(name: str, tensor: Tensor) -> Tensor:
    """A tensor that all ranks hold alike, as a plain one; raise ValueError if they do not."""
    if not is_dtensor(tensor):
        return tensor
    given: Any = tensor
    if not all(place.is_replicate() for place in given.placements):
        raise _misplaced(name, given, "be replicated, the same on all ranks")
    return given.to_local()


def _sharded_at(name: str, given: Any, dim: int) -> int | None:
    """The mesh dimension that shards ``dim``; raise ValueError if the tensor cannot be read so."""
    from torch.distributed.tensor import Shard

    if any(place.is_partial() for place in given.placements):
        raise _misplaced(name, given, "not be a partial sum")
    places = enumerate(given.placements)
    found = [i for i, place in places if not place.is_replicate() and place.dim == dim]
    # By type: in some releases a strided sharding equals a plain one.
    if len(found) > 1 or any(type(given.placements[i]) is not Shard for i in found):
        raise _misplaced(name, given, f"be sharded on dimension {dim} once and in order, if at all")
    return found[0] if found else None


def _row_shards(given: Any, dim: int, classes_at: int | None) -> RowShards | None:
    """Rows as a tensor without ``dim`` has them."""
    from torch.distributed.tensor import Replicate

    pairs = enumerate(given.placements)
    placements = tuple(Replicate() if i == classes_at else place for i, place in pairs)
    if all(place.is_replicate() for place in placements):
        return None
    here = given.to_local().shape
    shapes = (torch.Size(full[:dim] + full[dim + 1 :]) for full in (given.shape, here))
    return RowShards(given.device_mesh, shifted(placements, dim, -1), *shapes)


def _check_beside(name: str, given: Any, rows: RowShards) -> None:
    """Raise ValueError unless a parameter, sharded on classes at most, goes with rows."""
    if given.device_mesh != rows.mesh:
        raise ValueError(
            f"{name} must be on the mesh of the rows, {rows.mesh}, got {given.device_mesh}"
        )
    pairs = zip(given.placements, rows.placements, strict=True)
    if not all(own.is_replicate() or other.is_replicate() for own, other in pairs):
        raise ValueError(
            f"{name} must be replicated over the ranks that share rows, got a DTensor with "
            f"placements {given.placements} where the target has {rows.placements}: call "
            f"{name}.redistribute, or hidden.redistribute so that every rank that shares classes "
            f"has the same rows"
        )


def _misplaced(name: str, given: Any, wanted: str) -> ValueError:
    return ValueError(
        f"{name} must {wanted}, got a DTensor with placements {given.placements}; call "
        f"{name}.redistribute first"
    )
