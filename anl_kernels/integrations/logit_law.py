"""What a model does to the logits that its head returns, found out by looking."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PROBES = (2.0**-20, 3.0, -3.0, 1e30)
"""Logits that show a factor, a softcap, and that there is something else."""
BOUND = 1e6
"""No factor and no softcap is as large."""


class LogitLaw(NamedTuple):
    """Logits become ``softcap * tanh(scale * logits / softcap)``, or ``scale * logits``."""

    scale: float
    softcap: float | None


def probes_like(logits: Tensor) -> Tensor:
    """What to give a model for logits (..., K): (1, 4, K), float64, a probe at each position."""
    column = torch.tensor(PROBES, dtype=torch.float64, device=logits.device).reshape(1, -1, 1)
    return column.repeat(1, 1, logits.shape[-1])


def law_of(probed: Tensor, name: str, num_classes: int) -> LogitLaw:
    """The law by which a model of a name made ``probed`` of its probes. Waits for the device.

    Raises:
        ValueError: it is another law, or drops some of the ``num_classes`` columns.
    """
    unknown = ValueError(
        f"{name} does something to its logits that is neither a factor nor a softcap, which are "
        f"what patch_model knows; use compute_loss_func or loss_function"
    )
    if probed.shape[:-1] != (1, len(PROBES)) or probed.requires_grad:
        raise unknown
    if probed.shape[-1] < num_classes:
        raise ValueError(
            f"{name} drops the columns of its logits from {probed.shape[-1]} on; pass "
            f"num_classes={probed.shape[-1]}"
        )
    values = probed[0].double().cpu()
    small, *between, huge = values[:, 0].tolist()
    scale, softcap = small / PROBES[0], huge if huge < BOUND else None
    if abs(scale - 1) < 1e-6:  # of a model that converts its logits to float32
        scale = 1.0
    expected = scale * torch.tensor(PROBES[1:-1], dtype=torch.float64)
    if softcap is not None:
        expected = softcap * torch.tanh(expected / softcap)
    same_everywhere = torch.equal(values, values[:, :1].expand_as(values))
    as_expected = torch.allclose(torch.tensor(between).to(expected), expected, rtol=1e-5, atol=0)
    if not (0 < scale < BOUND and same_everywhere and as_expected):
        raise unknown
    return LogitLaw(scale, softcap)
