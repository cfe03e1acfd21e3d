"""The networks of the papers: four layers for digits, eight for CIFAR-10, ResNet-34."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def four_layers(channels: int, size: int, num_classes: int) -> nn.Module:
    """Two convolutions and two linear layers, for grey images of 8 or 28 pixels."""
    width, side = (16, size // 2) if size <= 8 else (32, size // 4)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.Identity() if size <= 8 else nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * side**2, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


def eight_layers(channels: int, size: int, num_classes: int) -> nn.Module:
    """Six convolutions, in pairs with a pooling layer after each, and two linear layers."""
    layers: list[nn.Module] = []
    for width in (64, 128, 196):
        for _ in range(2):
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    hidden = nn.Linear(channels * (size // 8) ** 2, 256, bias=False)
    head = hidden, nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, num_classes)
    return nn.Sequential(*layers, nn.Flatten(), *head)


class Residual(nn.Module):
    """Two 3 x 3 convolutions around which the input goes, too."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.around = nn.Sequential()
        if stride != 1 or before != width:
            projection = nn.Conv2d(before, width, 1, stride, bias=False)
            self.around = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.body(images) + self.around(images))


def resnet34(channels: int, size: int, num_classes: int) -> nn.Module:
    """ResNet-34 that begins as for CIFAR: one 3 x 3 convolution, no pooling."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
    ]
    before = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            stride = 2 if block == 0 and width > 64 else 1
            layers.append(Residual(before, width, stride))
            before = width
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes)
    return nn.Sequential(*layers, *head)
