"""The networks under study: the demonstration's, and one that normalises what each layer reads."""

from __future__ import annotations

from collections.abc import Callable

from next_token_demo.model import next_token_model
from torch import nn


def normalised_model(num_classes: int, context: int, width: int = 64) -> nn.Sequential:
    """The demonstration's network with a LayerNorm before each layer, as transformers have them."""
    return nn.Sequential(
        nn.Embedding(num_classes, width),
        nn.Flatten(),
        nn.LayerNorm(context * width),
        nn.Linear(context * width, 256),
        nn.GELU(),
        nn.LayerNorm(256),
        nn.Linear(256, 128),
        nn.GELU(),
        nn.LayerNorm(128),
        nn.Linear(128, num_classes),
    )


NETWORKS: dict[str, Callable[[int, int], nn.Sequential]] = {
    "plain": next_token_model,
    "normalised": normalised_model,
}
