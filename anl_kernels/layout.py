"""Logits of any shape as rows, without a copy wherever strides allow."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
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
    def class_first(self) -> bool:
        """Whether neighbouring positions, not neighbouring classes, are neighbours in memory."""
        _, K, M = self.tensor.shape
        _, stride_k, stride_m = self.tensor.stride()
        return M > 1 and K > 1 and stride_m < stride_k


def as_rows(logits: Tensor) -> RowView:
    """The rows of (K,), (N, K) or (N, K, d1, ...) logits, to be read.

    Copies only when d1, d2, ... cannot be walked with one stride.
    """
    if logits.dim() == 1:
        return RowView(logits[None, :, None])
    if logits.dim() == 2:
        return RowView(logits.unsqueeze(-1))
    return RowView(logits.flatten(2))


def writable_rows(tensor: Tensor) -> RowView:
    """The rows of a tensor to be written: :func:`as_rows`, and never a copy."""
    view = as_rows(tensor)
    assert view.tensor.data_ptr() == tensor.data_ptr(), "the rows of this tensor are not a view"
    return view


def empty_like_rows(logits: Tensor) -> Tensor:
    """An uninitialised tensor for the logits' gradient: their strides, if rows can be written."""
    return torch.empty_like(logits) if one_stride(logits) else logits.new_empty(logits.shape)


def one_stride(logits: Tensor) -> bool:
    """Whether d1, d2, ... of (N, K, d1, d2, ...) can be walked with one stride."""
    sizes, strides = logits.shape[2:], logits.stride()[2:]
    walked = [(n, s) for n, s in zip(sizes, strides, strict=True) if n != 1]
    return all(outer == inner * n for (_, outer), (n, inner) in pairwise(walked))
