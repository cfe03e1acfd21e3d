"""Which kernels ``auto`` takes on a GPU: one table, with its reasons.

Argued from bytes, not measured: nobody has run these kernels on a GPU yet. What is measured goes
into the table, in the place of the argument.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from anl_kernels.backends.triton.plan import TILE_LIMIT

TRITON, CUDA = "triton", "cuda"


class Rule(NamedTuple):
    """Rows that the CUDA kernels serve better than Triton's."""

    since: tuple[int, int]
    """Compute capabilities from this on,"""
    before: tuple[int, int]
    """and below this."""
    dtypes: tuple[torch.dtype, ...]
    above_classes: int
    """Rows of more classes than this,"""
    most_bytes: int
    """that are no longer than this. Their classes are neighbours in memory."""
    reason: str

    def holds(self, capability: tuple[int, int], dtype: torch.dtype, num_classes: int) -> bool:
        """Whether such rows are the rule's."""
        return (
            self.since <= capability < self.before
            and dtype in self.dtypes
            and num_classes > self.above_classes
            and num_classes * dtype.itemsize <= self.most_bytes
        )

    def __str__(self) -> str:
        """The rows, for people."""
        since, before = ("{}.{}".format(*capability) for capability in (self.since, self.before))
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
        return (
            f"rows of more than {self.above_classes} classes and up to {self.most_bytes >> 10} KiB "
            f"({names}; compute capability {since} to below {before})"
        )


RULES = (
    Rule(
        since=(9, 0),
        before=(12, 0),  # which has 100 KiB of shared memory, not 228
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        above_classes=TILE_LIMIT,
        most_bytes=16 * (200 << 10),
        reason=(
            "a cluster of 16 blocks holds the row in shared memory, 200 KiB in each, and reads it "
            "once; too long for the registers of one Triton program, it is read two or three times "
            "there (argued from bytes, not measured)"
        ),
    ),
)
"""Where no rule holds, Triton's: a row is read once there too, or by neither."""


def in_order(
    capability: tuple[int, int], dtype: torch.dtype, num_classes: int, class_stride: int
) -> tuple[str, str]:
    """The backends for rows on a GPU of a compute capability, the better one first."""
    for rule in RULES:
        if rule.holds(capability, dtype, num_classes) and class_stride == 1:
            return CUDA, TRITON
    return TRITON, CUDA
