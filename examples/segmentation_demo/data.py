"""Pictures of shapes with their masks, and masks as a careless annotator would draw them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

VOID = 255
"""The label of pixels that do not count: between the annotator's outline and what is certain."""

CLASSES = ("background", "disc", "ring", "square", "triangle", "cross")


@dataclass(frozen=True)
class Shapes:
    """Pictures and their masks."""

    images: Tensor  # (N, 3, H, W), channels_last
    clean: Tensor  # (N, H, W), VOID along outlines
    noisy: Tensor  # (N, H, W), what training sees; VOID where clean is

    @property
    def wrong(self) -> Tensor:
        """Pixels whose training label is another class's."""
        return self.noisy != self.clean


def shape_mask(kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where a shape of radius 1 around the origin is."""
    radius, square = np.hypot(x, y), np.maximum(abs(x), abs(y))
    return {
        "disc": radius < 1,
        "ring": (radius < 1) & (radius > 0.5),
        "square": square < 0.9,
        "triangle": (y < 0.8) & (y > 2 * abs(x) - 1),
        "cross": (square < 1) & ((abs(x) < 0.33) | (abs(y) < 0.33)),
    }[kind]


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels beside the border of a mask."""
    padded = np.pad(mask, 1, mode="edge")
    neighbours = padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]
    return np.any([n != mask for n in neighbours], axis=0)


def draw(
    num_images: int, size: int, noise: float, generator: np.random.Generator, shapes: int = 2
) -> Shapes:
    """Draw pictures of some shapes on a noisy ground.

    The annotator of the noisy masks calls a share ``noise`` of the shapes, each as a whole, by the
    name of another class: errors of objects, as in real masks, not of single pixels.
    """
    images = generator.normal(0.5, 0.12, (num_images, 3, size, size)).astype(np.float32)
    clean = np.zeros((num_images, size, size), np.int64)
    noisy = np.zeros_like(clean)
    rows, columns = np.mgrid[:size, :size]
    for i in range(num_images):
        for _ in range(shapes):
            true, radius = generator.integers(1, len(CLASSES)), generator.uniform(0.16, 0.26) * size
            top, left = generator.uniform(radius, size - radius, 2)
            turn = generator.uniform(-0.3, 0.3)
            x, y = (columns - left) / radius, (rows - top) / radius
            x, y = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
            inside = shape_mask(CLASSES[true], x, y)
            colour = generator.uniform(0, 1, 3).astype(np.float32)
            images[i][:, inside] = 0.6 * colour[:, None] + 0.4 * images[i][:, inside]
            other = 1 + (true - 1 + generator.integers(1, len(CLASSES) - 1)) % (len(CLASSES) - 1)
            border = outline(inside)
            for mask, label in ((clean, true), (noisy, _spoilt(true, other, noise, generator))):
                mask[i][inside] = label
                mask[i][border] = VOID
    return Shapes(
        torch.from_numpy(images).contiguous(memory_format=torch.channels_last),
        torch.from_numpy(clean),
        torch.from_numpy(noisy),
    )


def _spoilt(true: int, other: int, noise: float, generator: np.random.Generator) -> int:
    return other if generator.random() < noise else true
