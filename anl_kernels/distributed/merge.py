"""What shards know of a row, merged: docs/math.md, "Splitting and merging"."""

from __future__ import annotations

import torch
from torch import Tensor


def merge_partials(shards: Tensor) -> Tensor:
    """Partials of whole rows, (N, 5), out of those of their shards, (W, N, 5).

    See :meth:`anl_kernels.interface.Kernels.shard_partials`.
    """
    m, mass, total, count, z_y = shards.unbind(-1)
    m_all = m.amax(0)
    # A shard without a class has m = -inf, and so may the row: -inf - -inf would be NaN.
    below = torch.where(m == -torch.inf, 0.0, m - m_all)
    mass_all = (mass * below.exp()).sum(0)
    total_all = (total + count * below).sum(0)
    return torch.stack([m_all, mass_all, total_all, count.sum(0), z_y.amax(0)], dim=-1)
