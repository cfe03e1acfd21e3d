"""How the classes lie over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anl_kernels.distributed.collectives import check_group, gather, group_named
from anl_kernels.labels import is_ignored
from anl_kernels.numbers import as_int, shown

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

IGNORED, ELSEWHERE = -100, -1
"""Labels in a shard that are no place there: of an ignored row, of a class on another rank."""


@dataclass(frozen=True)
class ClassShards:
    """Classes spread over the ranks of a process group, in their order: an immutable value.

    Every loss takes one as ``process_group``. A bare process group will do as well, but then every
    call asks all ranks for their sizes, and waits for the answer.

    Args:
        group: the process group. All its ranks hold the same rows, each its own classes.
        sizes: how many classes each rank of the group has; any may be 0.

    Raises:
        TypeError: group is no process group, or none that this process belongs to.
        ValueError: there is not one size for each rank, or a size is no int of at least 0.

    Example:
        >>> shards = ak.ClassShards.chunked(group, num_classes=128256)
        >>> loss = ak.robust_loss(logits_of_this_rank, target, terms, process_group=shards)
    """

    group: ProcessGroup
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        ranks = check_group(self.group).size()
        listed = isinstance(self.sizes, Sequence) and not isinstance(self.sizes, str)
        sizes = tuple(map(as_int, self.sizes)) if listed else ()
        if len(sizes) != ranks or not all(size is not None and size >= 0 for size in sizes):
            raise ValueError(
                f"sizes must be {ranks} ints of at least 0, the number of classes of each rank of "
                f"the group, got {shown(self.sizes)}"
            )
        object.__setattr__(self, "sizes", sizes)

    def __deepcopy__(self, memo: dict[int, Any]) -> ClassShards:
        """Itself: a process group cannot be copied, and a module that has one should be."""
        return self

    @classmethod
    def chunked(cls, group: ProcessGroup, num_classes: int) -> ClassShards:
        """Classes as ``torch.chunk`` and ``DTensor`` share them: equally, the last ranks less."""
        ranks = check_group(group).size()
        count = as_int(num_classes)
        if count is None or count < 1:
            raise ValueError(f"num_classes must be a positive int, got {shown(num_classes)}")
        each = -(-count // ranks)
        sizes = (min(each, max(0, count - rank * each)) for rank in range(ranks))
        return cls(group, tuple(sizes))

    @classmethod
    def exchanged(cls, group: ProcessGroup, num_here: int, device: torch.device) -> ClassShards:
        """Ask every rank how many classes it has. All ranks of the group must call this."""
        check_group(group)
        mine = torch.tensor([num_here], device=device)
        return cls(group, tuple(gather(mine, group).flatten().tolist()))

    @classmethod
    def named(cls, name: str, sizes: Sequence[int]) -> ClassShards:
        """The same over the group of a name, which is how an operator is told of it."""
        return cls(group_named(name), tuple(sizes))

    @property
    def rank(self) -> int:
        """This process's place in the group."""
        return self.group.rank()

    @property
    def first(self) -> int:
        """The first class that is here."""
        return self.starts[self.rank]

    @property
    def starts(self) -> tuple[int, ...]:
        """The first class of every rank."""
        return tuple(accumulate(self.sizes, initial=0))[:-1]

    @property
    def num_here(self) -> int:
        """The number of classes here."""
        return self.sizes[self.rank]

    @property
    def num_classes(self) -> int:
        """The number of classes of all ranks."""
        return sum(self.sizes)

    def without_padding(self, num_classes: int) -> ClassShards:
        """The same, with only the first ``num_classes``: what comes after is no class."""
        sizes = tuple(
            min(size, max(0, num_classes - start))
            for size, start in zip(self.sizes, self.starts, strict=True)
        )
        return ClassShards(self.group, sizes)

    def labels_here(self, target: Tensor, ignore_index: int) -> Tensor:
        """Labels as places in this rank's classes, ``IGNORED`` or ``ELSEWHERE``."""
        place = target.long() - self.first
        there = (place >= 0) & (place < self.num_here)
        return torch.where(there, place, ELSEWHERE).masked_fill(
            is_ignored(target, ignore_index), IGNORED
        )
