"""How the rows of a batch lie over the ranks of a mesh, and what the ranks tell each other then."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anl_kernels.distributed.collectives import CopyToShards, SumOfShards, sum_of_batches

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class RowShards:
    """Rows spread over ranks: every rank computes its own, for one loss of them all.

    What is not of rows, such as the weight of a head, is the same on all these ranks, and so is its
    gradient: that of the whole loss. So every rank may be handed a plain tensor for it, or one that
    data parallelism averages.
    """

    mesh: DeviceMesh
    placements: tuple[Any, ...]
    """Of a tensor with a number for each row, such as the target; one for each mesh dimension."""
    shape: torch.Size
    """The target's, of all ranks together."""
    shape_here: torch.Size
    """The same of this rank's part."""

    @property
    def groups(self) -> list[ProcessGroup]:
        """The process groups over which rows are spread, one for each such mesh dimension."""
        spread = enumerate(self.placements)
        return [self.mesh.get_group(i) for i, place in spread if not place.is_replicate()]

    def total(self, part: Tensor) -> Tensor:
        """The sum of the ranks' parts, of which every rank makes the same loss."""
        return reduce(SumOfShards.apply, self.groups, part)

    def total_for_rows(self, part: Tensor) -> Tensor:
        """The sum of the ranks' parts, which each rank uses for its own rows."""
        return reduce(sum_of_batches, self.groups, part)

    def shared(self, tensor: Tensor) -> Tensor:
        """A tensor that all ranks hold alike, for use with the rows here; its gradient is whole."""
        learned = tensor.requires_grad and torch.is_grad_enabled()
        return reduce(CopyToShards.apply, self.groups, tensor) if learned else tensor

    def here(self, name: str, tensor: Tensor) -> Tensor:
        """The part for the rows here of a tensor of rows, named so.

        Raises:
            ValueError: it lies otherwise, or is a plain tensor of another shape than all rows have.
        """
        from torch.distributed.tensor import DTensor, Replicate

        if not isinstance(tensor, Tensor):
            return tensor  # what it should have been is said where its type is checked
        whole = [Replicate()] * self.mesh.ndim
        if isinstance(tensor, DTensor):
            on_mesh = tensor.device_mesh == self.mesh
            if on_mesh and _equal(tensor.placements, self.placements):
                return tensor.to_local()
            if not on_mesh or not all(place.is_replicate() for place in tensor.placements):
                raise ValueError(
                    f"{name} must be replicated, or lie as the rows do, with placements "
                    f"{self.placements} on {self.mesh}; got placements {tensor.placements} on "
                    f"{tensor.device_mesh}: call {name}.redistribute first"
                )
        elif tensor.shape != self.shape:
            raise ValueError(
                f"{name} must have shape {tuple(self.shape)}, that of the rows of all ranks, the "
                f"same on each, got a plain tensor of shape {tuple(tensor.shape)}; if it has "
                f"this rank's rows alone pass DTensor.from_local({name}, mesh, {self.placements})"
            )
        else:
            tensor = DTensor.from_local(tensor, self.mesh, whole, run_check=False)
        here = tensor.redistribute(placements=self.placements).to_local()
        if here.shape != self.shape_here:  # DTensor shares rows as torch.chunk does
            raise ValueError(
                f"{name} must lie as the rows do, which are spread unevenly ({self.shape_here[0]} "
                f"of {self.shape[0]} on this rank); got all rows on every rank: pass "
                f"DTensor.from_local of this rank's part of {name}, with shape= and stride="
            )
        return here

    def spread(self, values: Tensor, first: int = 0) -> Tensor:
        """Results of the rows here as a ``DTensor`` of all rows, which are dimension ``first``."""
        shape = (*values.shape[:first], *self.shape)
        return spread(values, self.mesh, shifted(self.placements, 0, first), shape)

    def with_classes(self, dim: int, num_classes: int) -> RowShards:
        """The same for a tensor with several numbers a row, in a dimension that is here."""
        shape, here = (
            torch.Size((*rows[:dim], num_classes, *rows[dim:]))
            for rows in (self.shape, self.shape_here)
        )
        return RowShards(self.mesh, shifted(self.placements, dim, 1), shape, here)


def spread(here: Tensor, mesh: DeviceMesh, placements: tuple[Any, ...], shape: Any) -> Tensor:
    """A ``DTensor`` of a shape out of the parts that ranks have, even or not."""
    from torch.distributed.tensor import DTensor

    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(1, size)
    return DTensor.from_local(
        here, mesh, placements, run_check=False, shape=torch.Size(shape), stride=(*strides[::-1],)
    )


def shifted(placements: tuple[Any, ...], start: int, by: int) -> tuple[Any, ...]:
    """Placements of a tensor to which dimensions were added, or from which they were taken.

    A placement on a dimension from ``start`` on is one on that dimension plus ``by``.
    """
    return tuple(
        place if place.is_replicate() or place.dim < start else _on_dim(place, place.dim + by)
        for place in placements
    )


def _equal(placements: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    """Whether two tensors lie alike; in some releases a strided sharding equals a plain one."""
    return placements == others and list(map(type, placements)) == list(map(type, others))


def _on_dim(place: Any, dim: int) -> Any:
    """Sharding of the same kind on another dimension."""
    from torch.distributed.tensor import Shard

    if type(place) is Shard:
        return Shard(dim)
    # What is left of rows that were flattened: DTensor has no public name for it.
    return type(place)(dim, split_factor=place.split_factor)
