"""Noisy labels, and one network trained on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import anl_kernels as ak

from .data import Images, augment
from .methods import Method
from .recipes import MAX_NORM, MOMENTUM, Recipe

EVALUATION_BATCH = 1000
# Of weights and batches: with the seed of the noise, the first batches would be of wrong labels.
TRAINING_SEEDS = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """What a run leaves."""

    wrong_labels: float
    """Share of the training labels."""
    correct: list[int]
    """Test images that are right, after each epoch."""
    fitted_labels: float
    """Share of the training labels, as given, that the network reproduces at the end."""
    fitted_wrong: float | None
    """The same of those that are wrong; None where none is."""
    seconds: float


def noisy_labels(
    images: Images, kind: str, rate: float, recipe: Recipe, seed: int
) -> ak.noise.NoisyLabels:
    """The training labels after one of the models of ``ak.noise``."""
    labels, k = images.train_labels, images.num_classes
    if kind == "symmetric":
        return ak.noise.symmetric(labels, rate, k, seed=seed)
    if kind == "asymmetric":
        return ak.noise.asymmetric(labels, rate, recipe.flips, seed=seed)
    if kind == "pair":
        return ak.noise.pair(labels, rate, k, seed=seed)
    return ak.noise.instance_dependent(images.train, labels, rate, k, seed=seed)


@torch.no_grad()
def hits(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Whether the highest logit is the label, (N,)."""
    model.eval()
    parts = zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
    return torch.cat([model(x).argmax(dim=1) == y for x, y in parts])


def train(
    images: Images,
    noisy: ak.noise.NoisyLabels,
    method: Method,
    recipe: Recipe,
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
    on_epoch: Callable[[int], None],
) -> Outcome:
    """SGD with a cosine schedule to zero; ``on_epoch`` gets the test images that are right."""
    start = time.perf_counter()
    device = images.train.device
    # Every loss starts from the same weights and sees the same batches.
    torch.manual_seed(TRAINING_SEEDS + seed)
    model = recipe.model(images.train.shape[1], images.train.shape[2], images.num_classes)
    parameters = list(model.to(device).parameters())
    optimiser = torch.optim.SGD(
        parameters, lr=learning_rate, momentum=MOMENTUM, weight_decay=method.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    generator = torch.Generator().manual_seed(TRAINING_SEEDS + seed)
    correct = []
    for _ in range(epochs):
        model.train()
        for chosen in torch.randperm(len(images.train), generator=generator).split(batch):
            rows = chosen.to(device)
            inputs = images.train[rows]
            if recipe.augmented:
                inputs = augment(inputs, generator)
            optimiser.zero_grad()
            loss = method.criterion(model(inputs), noisy.labels[rows])
            if method.l1:
                loss = loss + method.l1 * ak.l1_penalty(parameters)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, MAX_NORM)
            optimiser.step()
        schedule.step()
        correct.append(int(hits(model, images.test, images.test_labels).sum()))
        on_epoch(correct[-1])

    fitted = hits(model, images.train, noisy.labels)
    wrong = noisy.changed
    return Outcome(
        wrong_labels=noisy.rate,
        correct=correct,
        fitted_labels=fitted.float().mean().item(),
        fitted_wrong=fitted[wrong].float().mean().item() if wrong.any() else None,
        seconds=time.perf_counter() - start,
    )
