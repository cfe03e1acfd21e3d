"""Logits of any shape as rows, without a copy wherever strides allow."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class RowView(NamedTuple):
    """A (B, K, M) view: row n is batch n // M at position n % M; K classes, any strides."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, K, M)."""
        B, K, M = self.tensor.shape
        return B, K, M

    @property
    def strided(self) -> tuple[Tensor, int, int, int]:
        """The tensor and its batch, class and position strides, as kernels take them."""
        return (self.tensor, *self.tensor.stride())  # type: ignore[return-value]

    @property
    def class_first(self) -> bool:
        """Whether neighbouring positions, not neighbouring classes, are neighbours in memory."""
        _, K, M = self.tensor.shape
        _, stride_k, stride_m = self.tensor.stride()
        return M > 1 and K > 1 and stride_m < stride_k


def as_rows(logits: Tensor) -> RowView:
    """The rows of (K,), (N, K) or (N, K, d1, ...) logits.

    Copies only when d1, d2, ... cannot be walked with one stride.
    """
    if logits.dim() == 1:
        return RowView(logits[None, :, None])
    if logits.dim() == 2:
        return RowView(logits.unsqueeze(-1))
    return RowView(logits.flatten(2))
