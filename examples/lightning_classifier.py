"""Digits with wrong labels in Lightning: ANL-CE with its L1 penalty and clipping, beside CE.

Trains a small network on scikit-learn's digits, most of whose training labels are replaced, by the
recipe of ANL: the preset's weights, L1 in the place of weight decay, the gradient's norm clipped
with the penalty in it. Writes ``lightning_classifier.json`` to ``--out``.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from common import at_least, commit, machine, positive, share, versions, write_json
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import anl_kernels as ak
from anl_kernels import presets
from anl_kernels.integrations.lightning import L1Penalty
from anl_kernels.noise import symmetric

NUM_CLASSES, NUM_TEST = 10, 450
CLIP = 5.0  # ANL's, of the gradient with the penalty in it
QUICK = {"epochs": 3}


class Classifier(pl.LightningModule):
    """A network and its criterion: what is particular to these losses is the callback alone."""

    def __init__(self, criterion: nn.Module, learning_rate: float, epochs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, NUM_CLASSES))
        self.criterion, self.learning_rate, self.epochs = criterion, learning_rate, epochs
        self.right: list[Tensor] = []
        self.accuracies: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        x, target = batch
        return self.criterion(self(x), target)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        x, target = batch
        self.right.append(self(x).argmax(1) == target)

    def on_validation_epoch_end(self) -> None:
        self.accuracies.append(torch.cat(self.right).float().mean().item())
        self.right.clear()

    def configure_optimizers(self) -> dict[str, Any]:
        optimiser = torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.epochs)
        return {"optimizer": optimiser, "lr_scheduler": schedule}


def data(noise: float, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """(training set with a share of labels changed to other classes, clean held-out set)."""
    digits = load_digits()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits.target), generator=generator)
    x = torch.from_numpy(digits.data).float()[order] / 16
    clean = torch.from_numpy(digits.target).long()[order]
    noisy = symmetric(clean[NUM_TEST:], noise, NUM_CLASSES, seed=seed)
    train = TensorDataset(x[NUM_TEST:], noisy.labels)
    return train, TensorDataset(x[:NUM_TEST], clean[:NUM_TEST])


def train(
    criterion: nn.Module, learning_rate: float, args: argparse.Namespace, callbacks: list[Any]
) -> list[float]:
    """Accuracy on clean held-out digits after every epoch."""
    pl.seed_everything(args.seed, verbose=False)
    model = Classifier(criterion, learning_rate, args.epochs)
    train_set, test_set = data(args.noise, args.seed)
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        gradient_clip_val=CLIP,
        callbacks=callbacks,
        accelerator="cpu",  # the network is too small for a GPU
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    batches = DataLoader(train_set, batch_size=128, shuffle=True)
    trainer.fit(model, batches, DataLoader(test_set, batch_size=NUM_TEST))
    return model.accuracies


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line; ``--quick`` changes defaults only, so explicit options still hold."""
    parser = argparse.ArgumentParser(
        description="Train a classifier in Lightning on digits with wrong labels.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--noise", type=share, default=0.6, help="share of training labels made another class")
    add("--epochs", type=positive, default=60, help="of training")
    # ANL's gradients are smaller; at the other's rate either does worse.
    add("--ce-learning-rate", type=float, default=0.03, help="of SGD for CE; cosine to zero")
    add("--anl-learning-rate", type=float, default=0.3, help="of SGD for ANL-CE; cosine to zero")
    add("--seed", type=at_least(0), default=0, help="of split, noise, weights and batches")
    add("--out", type=Path, default=Path("out/lightning_classifier"), help="directory of the JSON")
    add("--quick", action="store_true", help="smoke run of some seconds; its figures mean nothing")
    if parser.parse_known_args(argv)[0].quick:
        parser.set_defaults(**QUICK)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Train with both losses, print, write."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    start = time.perf_counter()
    preset = presets.get("anl_ce", "cifar10")
    anl = presets.anl_ce("cifar10")
    accuracies = {
        "CE": train(ak.RobustLoss(ak.CE()), args.ce_learning_rate, args, []),
        "ANL-CE": train(anl, args.anl_learning_rate, args, [L1Penalty(preset.l1)]),
    }
    for name, curve in accuracies.items():
        print(f"{name}: {curve[-1]:.1%} of clean held-out digits, {max(curve):.1%} at best")
    record = {
        "clean_top1": accuracies,
        "anl_ce": {"terms": repr(preset.terms), "l1": preset.l1, "source": preset.source},
        "arguments": {k: v for k, v in vars(args).items() if k != "out"},
        "versions": versions("lightning", "scikit-learn"),
        "machine": machine(),
        "commit": commit(),
        "seconds": time.perf_counter() - start,
    }
    write_json(args.out / "lightning_classifier.json", record)
    print(f"Wrote {args.out}/lightning_classifier.json; {record['seconds']:.0f} s in all.")


if __name__ == "__main__":
    main(parse_arguments())
