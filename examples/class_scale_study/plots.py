"""The three plots."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # the plot goes to a file; no display is needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from .plans import ADAMW, CLIPPED, PLAIN
from .selection import REFERENCE, Record, Summary, having, last, optimised_by, values

STYLES = {
    "CE": ("#777777", "-"),
    "GCE(0.7)": ("#2e86ab", "-"),
    "K^0.7 GCE(0.7)": ("#2e86ab", "--"),
    "ANL(5,5)": ("#d1495b", "-"),
    "ANL(5,5) auto": ("#d1495b", "--"),
    "NCE+MAE(50,1)": ("#3b8f5b", "-"),
    "NCE+MAE(1,1) auto": ("#3b8f5b", "--"),
    "K log K NCE + MAE": ("#3b8f5b", ":"),
    "K/6 NCE + GCE": ("#8a5aa8", "--"),
}
DPI = 100


def scale_plot(path: Path, records: list[Record]) -> None:
    """Accuracy over K, a panel for each optimiser."""
    figure, panels = plt.subplots(1, 3, figsize=(14, 4.4), sharey=True, layout="constrained")
    for axes, optimiser in zip(panels, (PLAIN, CLIPPED, ADAMW), strict=True):
        mine = optimised_by(having(records, noise=0.0), optimiser)
        draw_curves(axes, mine)
        axes.set_title(optimiser, loc="left")
        axes.set_xlabel("classes K")
    panels[0].set_ylabel("clean held-out top-1 (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    save(figure, path)


def draw_curves(axes: Axes, records: list[Record]) -> None:
    """A line for each loss, dotted the answer that is always the same."""
    classes = sorted(values(records, "num_classes"))
    constant = [100 * having(records, num_classes=K)[0]["constant"] for K in classes]
    axes.plot(classes, constant, ":", color="black", label="always the same answer")
    for loss, (colour, line) in STYLES.items():
        mine = sorted(having(records, loss=loss), key=lambda r: r["run"]["num_classes"])
        points = [(r["run"]["num_classes"], 100 * last(r)) for r in mine]
        if points:
            axes.plot(*zip(*points, strict=True), line, color=colour, marker="o", ms=4, label=loss)
    axes.set_xscale("log")
    axes.grid(alpha=0.3)


def recipe_plot(path: Path, settings: dict[str, list[Summary]]) -> None:
    """A row for each setting: accuracies with their deviation, paired differences with errors."""
    figure = plt.figure(figsize=(12, 0.9 + 4.2 * len(settings)), layout="constrained")
    rows = figure.subplots(len(settings), 2, squeeze=False)
    for (left, right), (title, found) in zip(rows, settings.items(), strict=True):
        names = [f"{s.loss}, rate {s.rate:g}" for s in found]
        means, deviations = [s.last for s in found], [s.deviation for s in found]
        bars = left.barh(names, means, xerr=deviations, color="#9bb8c7", capsize=3)
        left.bar_label(bars, fmt="%.1f", padding=6, fontsize=8)
        left.set_title(title, loc="left", fontsize=10)
        left.set_xlabel("clean held-out top-1 (%), mean and deviation over seeds")
        left.margins(x=0.12)
        draw_differences(right, names, found)
        left.invert_yaxis()
        right.set_ylim(left.get_ylim())
    save(figure, path)


def draw_differences(axes: Axes, names: list[str], found: list[Summary]) -> None:
    """Paired differences, in colour where they are no chance."""
    for name, s in zip(names, found, strict=True):
        colour = "#d1495b" if s.differs else "#777777"
        axes.errorbar(s.difference or 0.0, name, xerr=s.error, fmt="o", color=colour, capsize=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"points above {REFERENCE}, same seed: mean and standard error")
    axes.set_yticks([])
    axes.grid(axis="x", alpha=0.3)


RATE_STYLES = {
    "CE": ("#777777", "-"),
    "GCE(0.5)": ("#2e86ab", "--"),
    "GCE(0.7)": ("#2e86ab", "-"),
    "RelativeGCE(0.5)": ("#8a5aa8", "--"),
    "RelativeGCE(0.7)": ("#8a5aa8", "-"),
    "ANL(1,1) batch": ("#d1495b", "-"),
}


def rates_plot(path: Path, panels: dict[str, list[Record]]) -> None:
    """Accuracy and wrong labels fitted over learning rates, a row for each optimiser."""
    figure, rows = plt.subplots(
        len(panels), 2, figsize=(11, 0.6 + 3.4 * len(panels)), layout="constrained", squeeze=False
    )
    for (left, right), (title, records) in zip(rows, panels.items(), strict=True):
        for loss, (colour, line) in RATE_STYLES.items():
            mine = sorted(having(records, loss=loss), key=lambda r: r["run"]["learning_rate"])
            rates = [r["run"]["learning_rate"] for r in mine]
            fitted = [100 * (r["wrong_fitted"] or 0.0) for r in mine]
            for axes, points in ((left, [100 * last(r) for r in mine]), (right, fitted)):
                axes.plot(rates, points, line, color=colour, marker="o", ms=4, label=loss)
        left.set_title(title, loc="left", fontsize=10)
        left.set_ylabel("clean held-out top-1 (%)")
        right.set_ylabel("wrong labels fitted (%)")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xlabel("learning rate")
            axes.grid(alpha=0.3)
    handles = rows[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", frameon=False)
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    """Write the picture."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
