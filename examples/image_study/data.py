"""Images and clean labels, standardised, on the device that trains."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .readers import Split, read_cifar10, read_cifar100, read_mnist

TEST_SHARE = 0.25  # of the digits, which come in one part
CROP_PADDING = 4


@dataclass(frozen=True)
class Images:
    """A data set with clean labels; images are (N, C, H, W) float32."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    num_classes: int

    def to(self, device: torch.device) -> Images:
        """The same with its tensors on ``device``."""
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return Images(**moved)


def load(name: str, root: Path) -> Images:
    """The data set called ``name``; all but the digits are files below ``root``."""
    readers = {"mnist": read_mnist, "cifar10": read_cifar10, "cifar100": read_cifar100}
    train, test = read_digits() if name == "digits" else readers[name](root)
    (train_images, train_labels), (test_images, test_labels) = train, test
    mean, deviation = channel_statistics(train_images)
    return Images(
        train=(torch.from_numpy(train_images).float() - mean) / deviation,
        train_labels=torch.from_numpy(train_labels),
        test=(torch.from_numpy(test_images).float() - mean) / deviation,
        test_labels=torch.from_numpy(test_labels),
        num_classes=int(train_labels.max()) + 1,
    )


def read_digits() -> tuple[Split, Split]:
    """Scikit-learn's 1797 digits of 8 x 8 pixels; the same quarter of each class is held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = digits.images.astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    parts = train_test_split(images, labels, test_size=TEST_SHARE, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = parts
    return (train_images, train_labels), (test_images, test_labels)


def channel_statistics(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, (C, 1, 1)."""
    statistics = images.mean(axis=(0, 2, 3)), images.std(axis=(0, 2, 3))
    mean, deviation = (torch.tensor(s, dtype=torch.float32).view(-1, 1, 1) for s in statistics)
    return mean, deviation


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random crops after padding, and random mirror images; (N, C, H, W) as before."""
    n, _, height, width = images.shape
    offset = torch.randint(2 * CROP_PADDING + 1, (2, n, 1), generator=generator)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    column = torch.arange(width)
    rows = (torch.arange(height) + offset[0]).to(images.device)
    columns = (torch.where(mirrored, column.flip(0), column) + offset[1]).to(images.device)
    sample = torch.arange(n, device=images.device)[:, None, None]
    padded = F.pad(images, [CROP_PADDING] * 4).movedim(1, -1)
    return padded[sample, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
