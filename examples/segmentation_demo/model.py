"""A small network that labels pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two convolutions with their normalisation."""
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        layers += [
            nn.Conv2d(channels, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class SmallUNet(nn.Module):
    """Two levels down, two up. (N, 3, H, W) to (N, K, H, W), channels_last if the input is."""

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        self.top, self.middle = block(3, width), block(width, 2 * width)
        self.bottom = block(2 * width, 4 * width)
        self.up_middle, self.up_top = block(6 * width, 2 * width), block(3 * width, width)
        self.classify = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """The logits of every pixel."""
        top = self.top(images)
        middle = self.middle(F.max_pool2d(top, 2))
        bottom = self.bottom(F.max_pool2d(middle, 2))
        middle = self.up_middle(torch.cat([F.interpolate(bottom, scale_factor=2), middle], 1))
        return self.classify(
            self.up_top(torch.cat([F.interpolate(middle, scale_factor=2), top], 1))
        )
