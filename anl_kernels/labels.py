"""What a label says: whether its row counts."""

from __future__ import annotations

from torch import Tensor


def is_ignored(target: Tensor, ignore_index: int) -> Tensor:
    """Where labels, int32 or int64, are ``ignore_index``: bool, of their shape.

    Compared in int64: PyTorch casts a number to the tensor's dtype, and one that int32 cannot hold
    comes out as some other label.
    """
    return target.long() == ignore_index
