"""How many rows of logits exist at a time, and which."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from anl_kernels.labels import is_ignored

_MIB = 1 << 20

CHUNK_BYTES = {"cpu": 64 * _MIB, "cuda": 256 * _MIB}
"""Memory for the logits of a chunk, by type of device (docs/forms.md, "The size of a chunk")."""
LEAST_ROWS = 512
"""Rows of a chunk unless ``chunk_bytes`` says otherwise, however long they are: every chunk reads
the weight twice, and reads and writes its gradient, which fewer rows would wait for."""
_ALIGNED_ROWS = 16


def rows_of_chunk(num_rows: int, row_bytes: int, chunk_bytes: int, device_type: str) -> int:
    """How many rows a chunk has: as many as fit the memory, chunks of about one size.

    Args:
        num_rows: of all chunks together.
        row_bytes: of the logits of one row, at least 1.
        chunk_bytes: memory for a chunk's logits; at least one row is taken. 0 for the default of
            the device.
        device_type: of the tensors, as PyTorch names it.
    """
    if not chunk_bytes:
        memory = CHUNK_BYTES.get(device_type, CHUNK_BYTES["cpu"])
        most = max(memory // row_bytes, LEAST_ROWS)
    else:
        most = max(1, chunk_bytes // row_bytes)
    count = max(1, -(-num_rows // most))
    each = max(1, -(-num_rows // count))
    aligned = -(-each // _ALIGNED_ROWS) * _ALIGNED_ROWS
    return aligned if aligned <= most else each


@dataclass(frozen=True)
class Chunk:
    """Some of the rows: neighbours, or those that an index names."""

    rows: slice | Tensor

    def __len__(self) -> int:
        """The number of rows."""
        if isinstance(self.rows, slice):
            return self.rows.stop - self.rows.start
        return self.rows.numel()

    def of(self, tensor: Tensor) -> Tensor:
        """These rows of a tensor with all of them; a view if they are neighbours."""
        return tensor[self.rows]

    def put(self, into: Tensor, values: Tensor) -> None:
        """Write values of these rows to a tensor with all of them."""
        into[self.rows] = values


def chunks_of(
    target: Tensor, ignore_index: int, skip_ignored: bool, row_bytes: int, chunk_bytes: int
) -> list[Chunk]:
    """The rows of (N,) labels in chunks; without ignored ones if they are to be skipped.

    To skip them the host has to know which they are: on a GPU it waits for that. The other
    arguments are :func:`rows_of_chunk`'s.
    """
    device_type = target.device.type
    if skip_ignored:
        counted = (~is_ignored(target, ignore_index)).nonzero().squeeze(-1)
        num_rows = counted.numel()
        if num_rows < target.numel():
            each = rows_of_chunk(num_rows, row_bytes, chunk_bytes, device_type)
            return [Chunk(rows) for rows in counted.split(each) if num_rows]
    num_rows = target.numel()
    each = rows_of_chunk(num_rows, row_bytes, chunk_bytes, device_type)
    return [Chunk(slice(first, min(first + each, num_rows))) for first in range(0, num_rows, each)]
