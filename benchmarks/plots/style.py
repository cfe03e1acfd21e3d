"""The look that all plots share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from benchmarks.plots.select import is_library
from benchmarks.results import Case

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID = "#222222", "#6b6b6b", "#e4e4e4"
DPI = 105
COLOURS_IN_A_FILE = 128
LETTERS_PER_INCH = 15
"""Of a caption."""
SETTINGS: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#9a9a9a",
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "text.color": INK,
    "legend.frameon": False,
}

COLOURS = {
    "ours": "#0057a8",
    "ours_inplace": "#3f9be0",
    "ours_compiled": "#123a63",
    "triton": "#00786f",
    "triton_inplace": "#5bb8ae",
    "cuda": "#5a3fb0",
    "cuda_inplace": "#a08fdc",
    "copy": INK,
    "cross_entropy": "#d69a2d",
    "compiled": "#c46a86",
    "compiled_official": "#a58ab8",
    "careful": "#8f9d5c",
    "official": "#9b9b9b",
    "liger": "#b9835f",
    "quack": "#7f96a3",
    "quack_one_pass": "#5f7f92",
    "flash_attn": "#a8a06a",
    "compiled_cross_entropy": "#b58a3e",
}
"""Blues, greens and violets are the library; the roofline is black; peers are muted."""
LIBRARY_COLOURS = ("#1f6fb5", "#2a8f9c", "#6d83c9", "#0f4c5c")
PEER_COLOURS = ("#c9b458", "#a9867d", "#88a08f", "#b59ac0", "#8d8d6a", "#c2a08a")
MARKERS = "osD^vP<>X*"


class Palette:
    """A colour and a marker for each contender of a run."""

    def __init__(self, cases: Iterable[Case]) -> None:
        spare = {True: cycle(LIBRARY_COLOURS), False: cycle(PEER_COLOURS)}
        markers = cycle(MARKERS)
        self._looks: dict[str, tuple[str, str]] = {}
        for case in cases:
            for m in case.measurements:
                if m.contender not in self._looks:
                    name = "ours" if m.contender == case.ours else m.contender
                    colour = _known(name) or next(spare[is_library(m)])
                    self._looks[m.contender] = colour, next(markers)

    def colour(self, contender: str) -> str:
        """Of its lines, bars and labels."""
        return self._looks[contender][0]

    def marker(self, contender: str) -> str:
        """Tells lines apart where colours do not."""
        return self._looks[contender][1]


def _known(contender: str) -> str | None:
    """Of the contender, or of what it is a case of: softmax_liger has Liger's."""
    names = [name for name in COLOURS if f"_{contender}".endswith(f"_{name}")]
    return COLOURS[max(names, key=len)] if names else None


@contextmanager
def look() -> Iterator[None]:
    """The style, for whatever is drawn and written inside.

    Raises:
        ImportError: matplotlib is not there.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ImportError("plots are drawn by matplotlib: pip install matplotlib") from error
    with rc_context(SETTINGS):
        yield


def new_figure(
    title: str, caption: str, grid: tuple[int, int], size: tuple[float, float]
) -> tuple[Figure, list[list[Axes]]]:
    """A figure with a title and a caption; its axes by row and column."""
    from matplotlib.figure import Figure

    # A Figure of its own, not pyplot's: it needs no display and leaves no global state.
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots(*grid, squeeze=False)
    figure.suptitle(title, x=0.008, ha="left", fontsize=13, fontweight="bold")
    width = int(LETTERS_PER_INCH * size[0])
    lines = [part for line in caption.splitlines() for part in wrap(line, width)]
    figure.supxlabel("\n".join(lines), x=0.008, ha="left", fontsize=8, color=FAINT)
    return figure, [list(row) for row in axes]


def save(figure: Figure, path: Path, source: str) -> None:
    """Write a PNG that names the results it was drawn from; of few colours, so that it is small."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    canvas, info = FigureCanvasAgg(figure), PngInfo()
    canvas.draw()
    info.add_text("Source", source)
    size = canvas.get_width_height()
    picture = Image.frombuffer("RGBA", size, canvas.buffer_rgba(), "raw", "RGBA", 0, 1)
    picture.convert("RGB").quantize(COLOURS_IN_A_FILE).save(path, pnginfo=info, optimize=True)
