"""Train one network with one loss on noisy masks, and measure it on clean ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import anl_kernels as ak

from .data import CLASSES, VOID, Shapes
from .model import SmallUNet

EVALUATION_BATCH = 50


@dataclass(frozen=True)
class Result:
    """One run. Shares are between 0 and 1, of pixels that are not VOID."""

    loss: str
    seed: int
    mean_iou: float  # of classes, on clean masks of held-out pictures
    accuracy: float  # of pixels, on the same
    curve: list[float]  # mean IoU after each epoch
    wrong_fitted: float  # of the wrong training labels, the share that the network gives
    seconds: float


def losses() -> dict[str, nn.Module]:
    """What is compared: weights as the papers have them at 10 classes."""
    skip_void = {"ignore_index": VOID}
    return {
        "CE": ak.RobustLoss(ak.CE(), **skip_void),
        "GCE(0.7)": ak.RobustLoss(ak.GCE(q=0.7), **skip_void),
        "SCE(0.1,1)": ak.SymmetricCrossEntropyLoss(0.1, 1.0, **skip_void),
        "NCE+RCE(1,1)": ak.ActivePassiveLoss(1.0, 1.0, **skip_void),
        "ANL-CE(5,5)": ak.ActiveNegativeLoss(5.0, 5.0, **skip_void),
    }


@torch.no_grad()
def confusion(model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """(K, K) counts of pixels by label and prediction, without VOID."""
    K = len(CLASSES)
    counts = torch.zeros(K * K, dtype=torch.int64)
    model.eval()
    parts = zip(images.split(EVALUATION_BATCH), masks.split(EVALUATION_BATCH), strict=True)
    for image, mask in parts:
        prediction = model(image).argmax(1)
        counted = mask != VOID
        counts += torch.bincount(mask[counted] * K + prediction[counted], minlength=K * K)
    model.train()
    return counts.view(K, K)


def mean_iou(counts: Tensor) -> float:
    """Intersection over union, averaged over the classes that are there."""
    hit = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - hit
    return (hit[union > 0] / union[union > 0]).mean().item()


@torch.no_grad()
def share_fitted(model: nn.Module, data: Shapes) -> float:
    """Of the wrong training labels, the share that the network reproduces."""
    model.eval()
    hits = torch.cat([model(part).argmax(1) for part in data.images.split(EVALUATION_BATCH)])
    return (hits == data.noisy)[data.wrong].float().mean().item() if data.wrong.any() else 0.0


def train(
    name: str,
    train_data: Shapes,
    test_data: Shapes,
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
    on_epoch: Callable[[float], None],
) -> Result:
    """Adam with a cosine schedule; pictures and logits are channels_last throughout."""
    torch.manual_seed(seed)  # every loss starts from the same weights
    model = SmallUNet(len(CLASSES)).to(memory_format=torch.channels_last)
    criterion = losses()[name]
    steps = epochs * -(-len(train_data.images) // batch)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    start, curve = time.perf_counter(), []
    for _ in range(epochs):
        for chosen in torch.randperm(len(train_data.images)).split(batch):
            optimiser.zero_grad()
            criterion(model(train_data.images[chosen]), train_data.noisy[chosen]).backward()
            optimiser.step()
            schedule.step()
        counts = confusion(model, test_data.images, test_data.clean)
        curve.append(mean_iou(counts))
        on_epoch(curve[-1])
    return Result(
        name,
        seed,
        curve[-1],
        (counts.diagonal().sum() / counts.sum()).item(),
        curve,
        share_fitted(model, train_data),
        time.perf_counter() - start,
    )
