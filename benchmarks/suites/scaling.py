"""Does the time per byte stay flat, whatever the number of classes and of rows?"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from benchmarks.problems import Problem
from benchmarks.suite import Spec, Suite
from benchmarks.suites.choices import chosen, regimes

SUBJECTS = (
    "ours", "ours_inplace", "triton", "cuda", "copy", "cross_entropy", "compiled", "careful",
    "liger", "quack",
)  # fmt: skip
QUICK = ("ours", "copy", "cross_entropy")
TABLES = {
    "classes": "From ten classes to ten million, as many logits",
    "rows": "From one row to very many, as many classes",
}
NOTES = """\
The number of classes changes at a constant number of logits, the number of rows at a constant \
number of classes. Few logits stay in a cache, of the copy as well."""
GROWTH = 8
"""From one number of rows to the next."""

CPU: dict[str, Any] = {
    "shapes": [(2**25 // k, k) for k in (10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000)],
    "typical_shape": (32768, 1000),
    "dtypes": ["float32"],
    "tables": list(TABLES),
    "regime": "warm",
    "seconds": 2.0,
}
CPU_QUICK: dict[str, Any] = {
    "shapes": [(2**22 // k, k) for k in (10, 1000, 100_000)],
    "typical_shape": (512, 1000),
    "subjects": list(QUICK),
    "seconds": 0.2,
}
CUDA: dict[str, Any] = {
    "shapes": [(2**30 // k, k) for k in (10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000)],
    "typical_shape": (65536, 32768),
    "dtypes": ["bfloat16"],
    "tables": list(TABLES),
    "regime": "default",
    "seconds": 0.5,
    "limit": 120.0,
}
CUDA_QUICK: dict[str, Any] = {
    "shapes": [(2**27 // k, k) for k in (10, 1000, 100_000)],
    "typical_shape": (4096, 32768),
    "limit": 60.0,
}


def defaults(device: str, quick: bool) -> dict[str, Any]:
    """Of the arguments."""
    full, less = (CUDA, CUDA_QUICK) if device == "cuda" else (CPU, CPU_QUICK)
    return full | (less if quick else {})


def specs(options: Namespace) -> list[Spec]:
    """What the arguments ask for."""
    most, classes = options.typical_shape
    shapes = {
        "classes": options.shapes,
        "rows": [(rows, classes) for rows in _up_to(most)],
    }
    return [
        Spec(table, problem, chosen(options, SUBJECTS), regime)
        for table in TABLES
        if table in options.tables
        for regime in regimes(options)
        for rows, classes in shapes[table]
        for dtype in options.dtypes
        for problem in [Problem(rows, classes, dtype, device=options.device)]
    ]


def _up_to(most: int) -> Iterator[int]:
    rows = 1
    while rows < most:
        yield rows
        rows *= GROWTH
    yield most


SCALING = Suite(
    "time per byte over classes and over rows", "NxK", TABLES, defaults, specs, notes=NOTES
)
