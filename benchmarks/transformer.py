"""A small causal transformer: what stands before the loss in a training step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64


class Transformer(nn.Module):
    """Tokens (batch, sequence) to logits (batch, sequence, classes); the head is not tied.

    Args:
        classes: size of the vocabulary.
        width: of the hidden state.
        layers: blocks of attention and MLP.
        sequence: number of tokens in each sequence.
        sigma: standard deviation of the logits before the first step.
    """

    def __init__(self, classes: int, width: int, layers: int, sequence: int, sigma: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(classes, width)
        self.positions = nn.Parameter(torch.randn(sequence, width))
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes, bias=False)
        nn.init.normal_(self.head.weight, std=sigma / width**0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.positions
        return self.head(self.norm(self.blocks(hidden)))


class _Block(nn.Module):
    """Attention and MLP, each on the normed sum of what came before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), _Attention(width))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(hidden)
        return hidden + self.mlp(hidden)


class _Attention(nn.Module):
    """Causal, in heads of ``HEAD_WIDTH``, or one where the width is no multiple of it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.project(hidden).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(attended.transpose(1, 2).flatten(2))
