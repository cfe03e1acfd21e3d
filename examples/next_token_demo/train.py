"""Train one network with one loss and follow its clean held-out accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .data import Corpus
from .model import next_token_model

EVALUATION_BATCH = 1000


@dataclass
class TrainingResult:
    """Accuracies (shares between 0 and 1) of one run."""

    steps: list[int] = field(default_factory=list)
    clean_top1: list[float] = field(default_factory=list)
    train_top1_noisy: float = 0.0  # agreement with the labels as given
    replaced_fitted: float = 0.0  # of the wrong labels, the share the network reproduces
    seconds: float = 0.0

    @property
    def final(self) -> float:
        """Clean held-out top-1 after the last step."""
        return self.clean_top1[-1]

    @property
    def best(self) -> float:
        """Highest clean held-out top-1 at any evaluation."""
        return max(self.clean_top1)

    @property
    def best_step(self) -> int:
        """Step of the best evaluation."""
        return self.steps[self.clean_top1.index(self.best)]


@torch.no_grad()
def hits(model: nn.Module, context: Tensor, target: Tensor) -> Tensor:
    """Whether the highest logit is the target, per window."""
    parts = zip(context.split(EVALUATION_BATCH), target.split(EVALUATION_BATCH), strict=True)
    return torch.cat([model(c).argmax(dim=1) == t for c, t in parts])


def batch_order(size: int, batch: int, steps: int, seed: int) -> list[Tensor]:
    """Indices of every batch: shuffled epochs, the same for every loss."""
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-steps * batch // size)
    indices = torch.cat([torch.randperm(size, generator=generator) for _ in range(epochs)])
    return list(indices[: steps * batch].split(batch))


def train(
    criterion: nn.Module,
    corpus: Corpus,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    evaluations: int,
    seed: int,
    on_step: Callable[[float | None], None],
) -> tuple[nn.Module, TrainingResult]:
    """Adam with a cosine schedule; ``on_step`` gets the newest clean top-1 after every step."""
    device = corpus.train_context.device
    torch.manual_seed(seed)  # every loss starts from the same weights
    model = next_token_model(corpus.num_classes, corpus.train_context.shape[1]).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    every = max(1, steps // evaluations)
    result = TrainingResult()
    start = time.perf_counter()

    order = batch_order(len(corpus.train_noisy), batch, steps, seed)
    for step, indices in enumerate(order, start=1):
        chosen = indices.to(device)
        optimiser.zero_grad()
        criterion(model(corpus.train_context[chosen]), corpus.train_noisy[chosen]).backward()
        optimiser.step()
        schedule.step()
        if step % every == 0 or step == steps:
            result.steps.append(step)
            clean = hits(model, corpus.test_context, corpus.test_target)
            result.clean_top1.append(clean.float().mean().item())
        on_step(result.final if result.clean_top1 else None)

    fitted = hits(model, corpus.train_context, corpus.train_noisy).float()
    result.train_top1_noisy = fitted.mean().item()
    if corpus.replaced.any():
        result.replaced_fitted = fitted[corpus.replaced].mean().item()
    result.seconds = time.perf_counter() - start
    return model, result
