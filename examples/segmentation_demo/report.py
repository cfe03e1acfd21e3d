"""Tables and plots out of the record of a run; nothing in them is typed by hand."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # the plot goes to a file; no display is needed

import matplotlib.pyplot as plt
import torch

from .data import CLASSES, VOID, Shapes


def by_loss(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each loss."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in record["runs"]:
        runs.setdefault(run["loss"], []).append(run)
    return runs


def spread(values: list[float]) -> str:
    """Mean and deviation over seeds, in per cent."""
    values = [100 * value for value in values]
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def gain(runs: list[dict[str, Any]], base: list[dict[str, Any]]) -> str:
    """Mean difference of last mean IoUs over seeds, each with its own pictures, and its error."""
    reached = {run["seed"]: run["mean_iou"] for run in base}
    gains = [100 * (run["mean_iou"] - reached[run["seed"]]) for run in runs]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
    return f"{statistics.mean(gains):+.1f}" + ("" if error is None else f" ± {error:.1f}")


def rows(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """Heading, then for each loss what was reached."""
    heading = ("loss", "mean IoU, last", "less CE's", "best epoch", "pixels right", "wrong fitted")
    table = [heading]
    by_name = by_loss(record)
    for loss, runs in by_name.items():
        last, best = ([f(run["curve"]) for run in runs] for f in (lambda c: c[-1], max))
        rest = [[run[key] for run in runs] for key in ("accuracy", "wrong_fitted")]
        final, *others = map(spread, (last, best, *rest))
        against = gain(runs, by_name["CE"]) if "CE" in by_name and loss != "CE" else ""
        table.append((loss, final, against, *others))
    return table


def markdown(record: dict[str, Any]) -> str:
    """The page beside the record."""
    arguments, versions = record["arguments"], record["versions"]
    heading, *body = ("| " + " | ".join(cells) + " |" for cells in rows(record))
    rule = "|---|" + "---:|" * (heading.count("|") - 2)
    return "\n".join(
        [
            "# Segmentation of shapes with noisy masks",
            "",
            f"{arguments['train_images']} pictures of {arguments['size']} x {arguments['size']} "
            f"pixels to train on, {arguments['noise']:.0%} of their shapes under the name of "
            f"another class; measured on {arguments['test_images']} others with clean masks. "
            f"{arguments['epochs']} epochs, seeds {', '.join(map(str, arguments['seeds']))}: mean "
            "± deviation in per cent. A seed draws pictures, noise and first weights, the same for "
            "all losses; *less CE's* is the mean of paired differences ± its standard error. "
            "*Wrong fitted*: the share of the wrong training pixels whose label the network gives, "
            "memorised that is. Weights of the losses as published, not tuned.",
            "",
            heading,
            rule,
            *body,
            "",
            "![Mean IoU over epochs](curves.png)",
            "",
            "![Pictures, training masks, clean masks](pictures.png)",
            "",
            f"Made by `python examples/segmentation.py` at {record['commit']}, torch "
            f"{versions['torch']}, {record['machine']['device']}.",
            "",
        ]
    )


def save_curves(record: dict[str, Any], path: Path) -> None:
    """Mean IoU over epochs: the mean of seeds, and the range of them."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for loss, runs in by_loss(record).items():
        curves = 100 * torch.tensor([run["curve"] for run in runs])
        epochs = range(1, curves.shape[1] + 1)
        (line,) = axes.plot(epochs, curves.mean(0), label=loss)
        low, high = curves.amin(0), curves.amax(0)
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean IoU on clean masks (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def save_pictures(data: Shapes, path: Path, count: int = 6) -> None:
    """Some pictures, the masks that training sees, and the clean ones."""
    count = min(count, len(data.images))
    size = (max(1.3 * count, 4), 4)  # the title's width at least
    figure, axes = plt.subplots(3, count, figsize=size, layout="constrained", squeeze=False)
    colours = mpl.colormaps["tab10"].with_extremes(over="white")
    for i in range(count):
        axes[0, i].imshow(data.images[i].permute(1, 2, 0).clamp(0, 1).numpy())
        for row, masks in ((1, data.noisy), (2, data.clean)):
            mask = masks[i].clone()
            mask[mask == VOID] = 99
            axes[row, i].imshow(mask.numpy(), cmap=colours, vmin=0, vmax=9, interpolation="nearest")
    for row, title in enumerate(("picture", "as labelled", "clean")):
        axes[row, 0].set_ylabel(title)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(f"{', '.join(CLASSES)}; white does not count", fontsize=9)
    figure.savefig(path, dpi=80)
    plt.close(figure)
