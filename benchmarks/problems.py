"""What is asked of the contenders of a case."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PHASES = {
    "both": "forward and backward",
    "forward": "forward, with what backward needs",
    "backward": "backward alone",
    "inference": "forward without a gradient",
}
"""Parts of a step."""


@dataclass(frozen=True)
class Problem:
    """The size and kind of the inputs, and the part of a step that is taken."""

    rows: int
    classes: int
    dtype: str = "float32"
    """Of the logits, or of what they are computed from."""
    sigma: float = 3.0
    """Standard deviation of the logits: how many classes NNCE clamps, and so the time, depend on
    it."""
    device: str = "cpu"
    """A key of ``DEVICES``."""
    phase: str = "both"
    """A key of ``PHASES``."""
    hidden: int | None = None
    """Size of the hidden state, where the head is part of the problem."""
    layers: int = 0
    """Of the transformer that is trained, on tokens; 0 where logits or hidden states are given."""
    grid: tuple[int, ...] = ()
    """Batch and spatial sizes, whose product is ``rows``, where classes are dimension 1."""
    layout: str = ""
    """Memory format of such logits: "channels_first" or "channels_last"."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return getattr(torch, self.dtype)

    @property
    def logits_bytes(self) -> int:
        """Size of the logits."""
        return self.rows * self.classes * self.torch_dtype.itemsize

    @property
    def shape(self) -> str:
        """Sizes, for people."""
        if not self.rows:
            return "no logits"
        if self.grid:
            batch, *spatial = self.grid
            return " x ".join(map(str, [batch, self.classes, *spatial])) + f" {self.layout}"
        sizes = self.rows, self.hidden, self.classes
        return " x ".join(str(size) for size in sizes if size is not None)

    def __str__(self) -> str:
        """Identify the problem in one line."""
        if not self.rows:
            return self.shape
        phase = "" if self.phase == "both" else f", {self.phase}"
        return f"{self.shape} {self.dtype} x{self.sigma:g}{phase}"
