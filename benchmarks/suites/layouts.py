"""Logits of segmentation: classes in dimension 1, pixels behind them, in two memory layouts."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from math import prod

from benchmarks.problems import Problem
from benchmarks.suite import Arguments, Spec, Suite, Table
from benchmarks.suites.choices import chosen, regimes
from benchmarks.targets import Target

Shape = tuple[int, ...]

MEMORY_FORMATS = ("channels_first", "channels_last")
MAIN = (
    "ours", "ours_inplace", "triton", "triton_inplace", "cuda", "cuda_inplace", "ours_compiled",
    "copy", "cross_entropy", "compiled_cross_entropy", "compiled", "careful", "official",
)  # fmt: skip
MEMORY = ("ours", "ours_inplace", "cross_entropy", "compiled", "careful", "official")
QUICK = ("ours", "ours_inplace", "copy", "cross_entropy", "careful", "official")

NOTES = """\
Sizes: batch x classes x height x width. GB/s count one read and one write of the logits. A \
gradient that comes in another layout than the logits' is copied into theirs, which is timed, too: \
PyTorch does so for a leaf, and a convolution would for itself. Liger, QuACK and flash-attn take \
rows alone, and are not here."""

CPU: Arguments = {
    "shapes": [(4, 19, 256, 512), (2, 150, 256, 256)],
    "memory_shapes": [(2, 150, 256, 256)],
    "dtypes": ["float32", "bfloat16"],
    "regime": "both",
    "seconds": 1.5,
}
CPU_QUICK: Arguments = {
    "shapes": [(2, 19, 128, 256)],
    "dtypes": ["float32"],
    "tables": ["main"],
    "contenders": list(QUICK),
    "regime": "warm",
    "seconds": 0.5,
}
CUDA: Arguments = {
    "shapes": [(8, 19, 1024, 1024), (8, 150, 512, 512)],
    "dtypes": ["bfloat16", "float32"],
    "tables": ["main"],
    "regime": "default",
    "seconds": 1.0,
    "limit": 180.0,
}
CUDA_QUICK: Arguments = {
    "shapes": [(8, 19, 1024, 1024)],
    "dtypes": ["bfloat16"],
    "seconds": 0.5,
    "limit": 60.0,
}


def _main(options: Namespace) -> Iterator[Spec]:
    for regime in regimes(options):
        for problem in _problems(options.shapes, options.dtypes, options):
            yield Spec("main", problem, chosen(options, MAIN), regime)


def _memory(options: Namespace) -> Iterator[Spec]:
    for problem in _problems(options.memory_shapes, options.dtypes[:1], options):
        yield Spec("memory", problem, chosen(options, MEMORY), roofline=None, measured="memory")


def _problems(shapes: list[Shape], dtypes: list[str], options: Namespace) -> Iterator[Problem]:
    for batch, classes, *spatial in shapes:
        grid = (batch, *spatial)
        for dtype in dtypes:
            for layout in MEMORY_FORMATS:
                yield Problem(
                    prod(grid), classes, dtype, device=options.device, grid=grid, layout=layout
                )


def _target(prefix: str, device: str, regime: str | None) -> Target:
    title = f"{prefix}CE / ours, in both memory layouts"
    return Target(title, "cross_entropy", "ours", ">=", 1, regime=regime, device=device)


LAYOUTS = Suite(
    "segmentation in both memory layouts",
    "BxCxHxW",
    tables={
        "main": Table("ANL-CE of every pixel", _main),
        "memory": Table("Peak extra memory", _memory),
    },
    settings={"cpu": (CPU, CPU_QUICK), "cuda": (CUDA, CUDA_QUICK)},
    notes=NOTES,
    targets=(_target("", "cpu", "warm"), _target("GPU: ", "cuda", None)),
)
