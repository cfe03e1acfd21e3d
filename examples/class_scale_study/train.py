"""One network trained with one loss, and what is noted of it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from next_token_demo.train import batch_order
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

import anl_kernels as ak

from .corpus import Split, Windows, read, split
from .losses import loss_of
from .networks import NETWORKS

EVALUATION_BATCH = 500
FITTED_WINDOWS = 2000


@dataclass(frozen=True)
class Run:
    """Everything that a run depends on; equal runs are the same run."""

    source: str
    num_classes: int
    loss: str
    optimiser: str  # "sgd" (momentum 0.9), "adam", "adamw" (weight decay 0.01)
    learning_rate: float
    steps: int
    batch: int
    train_windows: int
    held_out_windows: int
    seed: int = 0  # of the split by file, the windows, the noise, the weights, the batches
    noise: float = 0.0
    clip: float | None = None  # largest norm of the gradient
    eps: float = 1e-8  # Adam's
    min_prob: float = 1e-7
    held_out: str = "test"  # or "choice"
    evaluations: int = 4
    max_files: int | None = None
    noise_kind: str = "symmetric"  # or "pair"
    network: str = "plain"  # or "normalised"
    warm_steps: int = 0  # of cross entropy, before the loss

    def split(self) -> Split:
        """Its data."""
        tokens = read(self.source, self.max_files)
        sizes = self.train_windows, self.held_out_windows
        return split(
            tokens, self.num_classes, self.noise, self.seed, *sizes, noise_kind=self.noise_kind
        )


def train(run: Run) -> dict[str, Any]:
    """Train from weights that depend on the seed alone, with a cosine schedule to zero."""
    data = run.split()
    held_out: Windows = getattr(data, run.held_out)
    torch.manual_seed(run.seed)
    model = NETWORKS[run.network](run.num_classes, data.train.context.shape[1])
    terms, class_scale = loss_of(run.loss, run.num_classes, run.min_prob)
    criterion = ak.LinearRobustLoss(model[-1], terms, class_scale=class_scale)
    warm = ak.LinearRobustLoss(model[-1], ak.CE())
    optimiser = make_optimiser(run, model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, run.steps)
    order = batch_order(len(data.train), run.batch, run.steps, run.seed)

    first = data.train.context[order[0]], data.train.given[order[0]]
    start_logits = logits_gradient_norm(model, terms, class_scale, *first)
    norms: list[float] = []
    curve: list[tuple[int, float]] = []
    every = max(1, run.steps // run.evaluations)
    began = time.perf_counter()
    for step, chosen in enumerate(order, start=1):
        optimiser.zero_grad()
        hidden = model[:-1](data.train.context[chosen])
        loss = warm if step <= run.warm_steps else criterion
        loss(hidden, data.train.given[chosen]).backward()
        norms.append(clip_gradient(model, run.clip))
        if not math.isfinite(norms[-1]):
            break
        optimiser.step()
        schedule.step()
        if step % every == 0 or step == run.steps:
            curve.append((step, accuracy(model, held_out.context, held_out.clean)))
    return {
        "steps": [step for step, _ in curve],
        "top1": [round(top1, 5) for _, top1 in curve],
        "constant": round(constant_accuracy(held_out), 5),
        "wrong_fitted": wrong_fitted(model, data.train),
        "clamped": clamped_share(model, held_out, run),
        "start_logits_gradient": start_logits,
        **gradient_norms(norms),
        "seconds": round(time.perf_counter() - began, 2),
    }


def make_optimiser(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that a run names."""
    parameters, rate = model.parameters(), run.learning_rate
    if run.optimiser == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[run.optimiser]
    return kind(parameters, lr=rate, eps=run.eps)


def clip_gradient(model: nn.Module, largest: float | None) -> float:
    """The norm of the gradient before it is clipped."""
    norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if largest is not None:
        clip_grads_with_norm_(model.parameters(), largest, norm)
    return norm.item()


def gradient_norms(norms: list[float]) -> dict[str, float | int | None]:
    """Norms of the parameters' gradient: at the start, at the median step, at the worst."""
    finite = [norm for norm in norms if math.isfinite(norm)]
    return {
        "start_gradient": finite[0] if finite else None,
        "median_gradient": statistics.median(finite) if finite else None,
        "largest_gradient": max(finite, default=None),
        "diverged_at": None if len(finite) == len(norms) else len(norms),
    }


def logits_gradient_norm(
    model: nn.Module,
    terms: ak.Terms,
    class_scale: float | str,
    context: Tensor,
    target: Tensor,
) -> float:
    """Mean over rows of the norm of the gradient of a row's loss with respect to its logits."""
    logits = model(context).detach().requires_grad_()
    ak.RobustLoss(terms, class_scale=class_scale, reduction="sum")(logits, target).backward()
    return logits.grad.norm(dim=1).mean().item()


def logits_in_parts(model: nn.Module, context: Tensor) -> Iterator[Tensor]:
    """Logits of some windows at a time."""
    for part in context.split(EVALUATION_BATCH):
        yield model(part)


@torch.no_grad()
def accuracy(model: nn.Module, context: Tensor, target: Tensor) -> float:
    """Share of windows whose highest logit is the target."""
    best = torch.cat([logits.argmax(dim=1) for logits in logits_in_parts(model, context)])
    return (best == target).float().mean().item()


def constant_accuracy(windows: Windows) -> float:
    """What the best answer that is always the same would reach."""
    return windows.clean.bincount().max().item() / len(windows)


def wrong_fitted(model: nn.Module, train: Windows) -> float | None:
    """Of wrong training labels (some of them), the share that the network reproduces."""
    wrong = (train.given != train.clean).nonzero().flatten()[:FITTED_WINDOWS]
    if not len(wrong):
        return None
    return round(accuracy(model, train.context[wrong], train.given[wrong]), 5)


@torch.no_grad()
def clamped_share(model: nn.Module, windows: Windows, run: Run) -> dict[str, float]:
    """Shares of all classes, and of labels, that end below ``min_prob`` in held-out rows."""
    logits = model(windows.context[:EVALUATION_BATCH])
    log_probs = logits.log_softmax(dim=1)
    labels = log_probs.gather(1, windows.clean[:EVALUATION_BATCH, None])
    floor = math.log(run.min_prob)
    return {
        "classes": round((log_probs < floor).float().mean().item(), 5),
        "labels": round((labels < floor).float().mean().item(), 5),
    }
