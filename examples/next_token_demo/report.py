"""Tables, closing sentences, plot and JSON; every statement is computed from the figures."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from common import machine, versions, write_json
from rich.table import Table

import anl_kernels as ak

from .data import Corpus
from .losses import BASELINE
from .measure import Cost
from .train import TrainingResult

mpl.use("Agg")  # the plot goes to a file; no display is needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = ("#777777", "#d1495b", "#2e86ab", "#3b8f5b")
PACKAGES = ("triton", "numpy", "matplotlib", "rich")


def library_backend(device: torch.device) -> str:
    """Name of the backend that the library picks for tensors on ``device``."""
    return ak.env_report().auto[device.type]


def percent(share: float) -> str:
    """``0.1234`` as ``12.3``."""
    return f"{100 * share:.1f}"


def accuracy_table(results: dict[str, TrainingResult], noise: float) -> Table:
    """Held-out accuracy and memorisation of every loss, in per cent."""
    table = Table(
        title=f"Trained on {noise:.0%} random labels, held out with clean ones (top-1, %)"
    )
    table.add_column("loss", no_wrap=True)
    for heading in (
        "clean\nheld-out\nfinal",
        "clean\nheld-out\nbest",
        "at\nstep",
        "training\nlabels\nas given",
        "wrong\nlabels\nfitted",
        "train-\ning s",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, result in results.items():
        table.add_row(
            name,
            percent(result.final),
            percent(result.best),
            str(result.best_step),
            percent(result.train_top1_noisy),
            percent(result.replaced_fitted),
            f"{result.seconds:.0f}",
        )
    return table


def cost_table(costs: dict[str, Cost], shape: Iterable[int], backend: str) -> Table:
    """Time and memory of loss and gradient."""
    size = " x ".join(f"{n:,}" for n in shape)
    table = Table(title=f"Loss and gradient, {size} logits\nlibrary backend: {backend}")
    table.add_column("loss")
    for heading in ("median ms", "peak extra MB", "x logits"):
        table.add_column(heading, justify="right")
    for name, cost in costs.items():
        table.add_row(
            name,
            f"{cost.milliseconds:.3g}",
            f"{cost.peak_bytes / 1e6:.1f}",
            f"{cost.times_logits:.2f}",
        )
    return table


def gap(points: float) -> str:
    """A signed difference in words, in percentage points."""
    if abs(points) < 0.05:
        return "level with"
    return f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def accuracy_findings(results: dict[str, TrainingResult], num_held_out: int) -> list[str]:
    """Who won, by how much over cross entropy, and who memorised."""
    ranked = sorted(results, key=lambda name: results[name].final, reverse=True)
    first, second = ranked[:2]
    top, runner_up, base = results[first], results[second], results[BASELINE]
    lead = 100 * (top.final - runner_up.final)
    # Both accuracies come from the same windows, so treating them as independent overstates this.
    error = 100 * math.sqrt(sum(r.final * (1 - r.final) for r in (top, runner_up)) / num_held_out)
    verdict = "more than" if lead > 2 * error else "within"
    sentences = [
        f"Highest final held-out top-1: {first} with {percent(top.final)} %, {lead:.1f} points "
        f"ahead of {second} ({verdict} two standard errors, {2 * error:.1f}; one run, one seed)."
    ]
    for name in (n for n in ranked if n != BASELINE):
        final = results[name].final
        sentences.append(
            f"{name} ends {gap(100 * (final - base.final))} {BASELINE}'s final value and "
            f"{gap(100 * (final - base.best))} {BASELINE}'s best (step {base.best_step}), which "
            "early stopping on clean labels would have to find."
        )
    loss_since_best = 100 * (base.best - base.final)
    fitted = ", ".join(f"{n} {percent(r.replaced_fitted)} %" for n, r in results.items())
    sentences.append(
        f"{BASELINE} loses {loss_since_best:.1f} points after its best step. "
        f"Wrong training labels fitted: {fitted}."
    )
    return sentences


def cost_findings(costs: dict[str, Cost], eager: str, library: str, backend: str) -> list[str]:
    """The library's ANL against the eager one."""
    a, b = costs[library], costs[eager]
    return [
        f"{library} (backend: {backend}) takes {a.milliseconds / b.milliseconds:.2f} times the "
        f"time of {eager} and {a.peak_bytes / b.peak_bytes:.2f} times its extra memory "
        f"({a.times_logits:.2f} against {b.times_logits:.2f} times the logits)."
    ]


def error_finding(errors: dict[str, float]) -> str:
    """How far the gradients in the logits' precision are from those in float64."""
    listed = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    return f"Largest gradient error against float64, relative to the largest entry: {listed}."


def draw_curves(axes: Axes, results: dict[str, TrainingResult], noise: float) -> None:
    """Clean held-out accuracy over steps, each curve named at its end."""
    for colour, (name, result) in zip(COLOURS, results.items(), strict=True):
        accuracy = [100 * value for value in result.clean_top1]
        axes.plot(result.steps, accuracy, color=colour, linewidth=2.2, label=name)
    ends = sorted((100 * r.final, c, n) for c, (n, r) in zip(COLOURS, results.items(), strict=True))
    low, high = axes.get_ylim()
    height = -math.inf
    for value, colour, name in ends:
        height = max(value, height + 0.055 * (high - low))  # names must not overlap
        axes.annotate(
            f"{name}  {value:.1f}",
            (axes.get_xlim()[1], height),
            color=colour,
            va="center",
            fontweight="bold",
            annotation_clip=False,
        )
    axes.set_xlabel("training step")
    axes.set_ylabel("clean held-out top-1 (%)")
    axes.set_title(f"Next-token accuracy, {noise:.0%} of training labels random", loc="left")
    axes.grid(alpha=0.3)


def draw_bars(axes: Axes, values: dict[str, float], title: str, colours: list[str]) -> None:
    """Horizontal bars with their figures."""
    bars = axes.barh(list(values), list(values.values()), color=colours)
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * max(values.values()))
    axes.set_title(title, loc="left", fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def save_plot(
    path: Path,
    results: dict[str, TrainingResult],
    costs: dict[str, Cost],
    noise: float,
    backend: str,
) -> None:
    """One large panel of curves, two small ones of costs."""
    figure = plt.figure(figsize=(13, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.75, 1))
    draw_curves(figure.add_subplot(grid[:, 0]), results, noise)
    colours = ["#777777", "#e7a3ac", *COLOURS[1:]]
    times = {name: cost.milliseconds for name, cost in costs.items()}
    memory = {name: cost.times_logits for name, cost in costs.items()}
    draw_bars(
        figure.add_subplot(grid[0, 1]),
        times,
        f"Loss and gradient, ms per step\n(library backend: {backend})",
        colours,
    )
    draw_bars(
        figure.add_subplot(grid[1, 1]), memory, "Peak extra memory, multiple of the logits", colours
    )
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def save_json(
    path: Path,
    *,
    arguments: dict[str, Any],
    device: torch.device,
    corpus: Corpus,
    results: dict[str, TrainingResult],
    costs: dict[str, Cost],
    gradient_errors: dict[str, float],
    findings: list[str],
    seconds: float,
) -> None:
    """Everything the run was given and everything it found."""
    record = {
        "arguments": arguments,
        "versions": versions(*PACKAGES),
        "machine": machine(device),
        "library": {"backend": library_backend(device), "env_report": asdict(ak.env_report())},
        "corpus": {
            "files": corpus.num_files,
            "tokens": corpus.num_tokens,
            "train_windows": len(corpus.train_clean),
            "test_windows": len(corpus.test_target),
            "wrong_labels": corpus.replaced.float().mean().item(),
        },
        "training": {
            name: {**asdict(r), "final": r.final, "best": r.best, "best_step": r.best_step}
            for name, r in results.items()
        },
        "costs": {n: {**asdict(c), "times_logits": c.times_logits} for n, c in costs.items()},
        "gradient_errors": gradient_errors,
        "findings": findings,
        "seconds": seconds,
    }
    write_json(path, record)
