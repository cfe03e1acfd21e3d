"""Accuracy over epochs at one high noise rate, and after the last epoch over noise rates."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean

import matplotlib as mpl

from .methods import BASELINE, METHODS
from .records import Setting, Study
from .tables import methods

mpl.use("Agg")  # the plot goes to a file; no display is needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

FILE = "images.png"
CURVE_RATE = 0.6
COLOURS = dict(
    zip(
        METHODS,
        (
            "#222222",
            "#999999",
            "#e07b39",
            "#b5892e",
            "#3b8f5b",
            "#7a9e3f",
            "#2a9d9d",
            "#d1495b",
            "#8e5ea2",
            "#2e86ab",
            "#7d1128",
            "#c97b84",
        ),
        strict=True,
    )
)


def save(study: Study, path: Path) -> None:
    """Both panels."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    draw_curves(left, study, curve_setting(study))
    draw_rates(right, study)
    for axes in (left, right):
        axes.set_ylabel("clean test accuracy (%)")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def curve_setting(study: Study) -> Setting:
    """The symmetric noise nearest to ``CURVE_RATE``, or whatever there is."""
    settings = study.settings("symmetric") or [study.runs[0].setting]
    return min(settings, key=lambda setting: abs(setting.rate - CURVE_RATE))


def draw_curves(axes: Axes, study: Study, setting: Setting) -> None:
    """The mean over seeds of each loss, after each epoch."""
    curves = {}
    for name in methods(study):
        runs = [study.accuracies(run) for run in study.of(name, setting)]
        if runs:
            curves[name] = [mean(values) for values in zip(*runs, strict=True)]
            axes.plot(range(1, len(runs[0]) + 1), curves[name], **style(name))
    name_ends(axes, {name: curve[-1] for name, curve in curves.items()})
    axes.set_xlabel("epoch")
    axes.set_title(f"{setting.rate:.0%} {setting.noise} noise, mean over seeds", loc="left")


def draw_rates(axes: Axes, study: Study) -> None:
    """Mean after the last epoch, with the deviation over seeds, over symmetric rates."""
    settings = study.settings("symmetric")
    for name in methods(study):
        points = [(s.rate, found) for s in settings if (found := study.last(name, s))]
        if points:
            axes.errorbar(
                [100 * rate for rate, _ in points],
                [summary.mean for _, summary in points],
                [summary.deviation or 0.0 for _, summary in points],
                marker="o",
                markersize=4,
                capsize=2,
                **style(name),
            )
    if settings:
        ends = {n: s.mean for n in methods(study) if (s := study.last(n, settings[-1]))}
        name_ends(axes, ends)
    axes.set_xlabel("symmetric noise (%)")
    axes.set_title("After the last epoch", loc="left")


def style(name: str) -> dict[str, object]:
    """Cross entropy stands out."""
    return {"color": COLOURS[name], "linewidth": 3.0 if name == BASELINE else 1.6}


def name_ends(axes: Axes, ends: dict[str, float]) -> None:
    """Each loss named beside the end of its line, or as near as names do not overlap."""
    low, top = axes.get_ylim()
    gap = 0.055 * (top - low)
    names = sorted(ends, key=ends.__getitem__)
    heights: dict[str, float] = {}
    bottom = -math.inf
    for name in names:
        heights[name] = max(ends[name], bottom)
        bottom = heights[name] + gap
    for name in reversed(names):  # back below the top, where the stack has grown over it
        heights[name] = min(heights[name], top)
        top = heights[name] - gap
        axes.annotate(
            f" {name}  {ends[name]:.1f}",
            (axes.get_xlim()[1], heights[name]),
            color=COLOURS[name],
            va="center",
            fontweight="bold",
            annotation_clip=False,
        )
