"""Does the time per byte stay flat, whatever the number of classes and of rows?"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from benchmarks.problems import Problem
from benchmarks.suite import Arguments, Spec, Suite, Table
from benchmarks.suites.choices import Shape, chosen, each
from benchmarks.targets import Target, from_classes

CONTENDERS = (
    "ours", "ours_inplace", "triton", "cuda", "copy", "cross_entropy", "compiled", "careful",
    "liger", "quack",
)  # fmt: skip
QUICK = ("ours", "copy", "cross_entropy")
NOTES = """\
With ten million classes NNCE's smallest probability is 1e-9, not 1e-7, which 1 / K has reached. \
The number of classes changes at a constant number of logits, the number of rows at a constant \
number of classes. Few logits stay in a cache, of the copy as well."""
ELEMENTS = 40_000_000
GROWTH = 8
"""From one number of rows to the next."""

CPU: Arguments = {
    "shapes": [(ELEMENTS // k, k) for k in (10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000)],
    "typical_shape": (65536, 1000),
    "dtypes": ["float32"],
    "regime": "warm",
    "seconds": 2.0,
}
CPU_QUICK: Arguments = {
    "shapes": [(2**22 // k, k) for k in (10, 1000, 100_000)],
    "typical_shape": (512, 1000),
    "contenders": list(QUICK),
    "seconds": 0.2,
}
CUDA: Arguments = {
    "shapes": [(2**30 // k, k) for k in (10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000)],
    "typical_shape": (65536, 32768),
    "dtypes": ["bfloat16"],
    "regime": "default",
    "seconds": 0.5,
    "limit": 120.0,
}
CUDA_QUICK: Arguments = {
    "shapes": [(2**27 // k, k) for k in (10, 1000, 100_000)],
    "typical_shape": (4096, 32768),
    "limit": 60.0,
}


def _classes(options: Namespace) -> Iterator[Spec]:
    return _specs("classes", options.shapes, options)


def _rows(options: Namespace) -> Iterator[Spec]:
    most, classes = options.typical_shape
    return _specs("rows", [(rows, classes) for rows in _up_to(most)], options)


def _specs(table: str, shapes: list[Shape], options: Namespace) -> Iterator[Spec]:
    for regime, (rows, classes), dtype in each(options, shapes):
        problem = Problem(rows, classes, dtype, device=options.device)
        yield Spec(table, problem, chosen(options, CONTENDERS), regime)


def _up_to(most: int) -> Iterator[int]:
    rows = 1
    while rows < most:
        yield rows
        rows *= GROWTH
    yield most


# The copy's time per byte is the same at any number of classes.
FLAT = Target(
    "K >= 1000, as many logits: ours / copy", "ours", "copy", "<=", 2, ("classes",),
    concerns=from_classes(1000),
)  # fmt: skip


SCALING = Suite(
    "time per byte over classes and over rows",
    "NxK",
    tables={
        "classes": Table("From ten classes to ten million, as many logits", _classes),
        "rows": Table("From one row to very many, as many classes", _rows),
    },
    settings={"cpu": (CPU, CPU_QUICK), "cuda": (CUDA, CUDA_QUICK)},
    notes=NOTES,
    targets=(FLAT,),
)
