"""How each data set is trained: the papers' recipes, and one for the digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from .models import eight_layers, four_layers, resnet34

BATCH = 128
MOMENTUM = 0.9
MAX_NORM = 5.0  # of the gradient, L1 term included


@dataclass(frozen=True)
class Recipe:
    """What depends on the data set."""

    model: Callable[[int, int, int], nn.Module]
    epochs: int
    learning_rate: float
    weights: str
    """The column of ``ak.presets``."""
    flips: str
    """The data set of ``ak.noise.asymmetric``."""
    augmented: bool = False


RECIPES = {
    # How these were chosen is in report.DIGITS.
    "digits": Recipe(four_layers, 100, 0.05, "cifar10", "mnist"),
    "mnist": Recipe(four_layers, 50, 0.01, "mnist", "mnist"),
    "cifar10": Recipe(eight_layers, 120, 0.01, "cifar10", "cifar10", augmented=True),
    "cifar100": Recipe(resnet34, 200, 0.1, "cifar100", "cifar100", augmented=True),
}

# Of the losses without an L1 term.
WEIGHT_DECAY = {"mnist": 1e-3, "cifar10": 1e-4, "cifar100": 1e-5}
