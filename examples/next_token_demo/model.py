"""The network of the demonstration: token embeddings and a small perceptron."""

from __future__ import annotations

from torch import nn


def next_token_model(num_classes: int, context: int, width: int = 64) -> nn.Sequential:
    """Map ``(batch, context)`` token ids to ``(batch, num_classes)`` logits."""
    return nn.Sequential(
        nn.Embedding(num_classes, width),
        nn.Flatten(),
        nn.Linear(context * width, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )
