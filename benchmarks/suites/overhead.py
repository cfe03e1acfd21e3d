"""What a call costs when there is next to nothing to compute."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from benchmarks.problems import Problem
from benchmarks.suite import Spec, Suite
from benchmarks.suites.choices import chosen, regimes

SUBJECTS = (
    "ours", "ours_function", "triton", "cuda", "ours_compiled", "cross_entropy",
    "compiled_cross_entropy", "compiled", "careful", "official", "liger", "quack", "flash_attn",
)  # fmt: skip
QUICK = ("ours", "ours_function", "cross_entropy", "official")
TABLES = {"main": "A call, forward and backward", "inference": "A call without a gradient"}
NOTES = "On a GPU the time is the host's, to queue the step: for tiny inputs the GPU waits for it."

COMMON: dict[str, Any] = {
    "shapes": [(1, 10), (128, 10), (128, 100), (8, 1000), (1, 32000)],
    "dtypes": ["float32"],
    "tables": list(TABLES),
    "regime": "default",
    "seconds": 1.0,
}
QUICKLY: dict[str, Any] = {
    "shapes": [(1, 10), (128, 10)],
    "tables": ["main"],
    "subjects": list(QUICK),
    "seconds": 0.3,
}


def defaults(device: str, quick: bool) -> dict[str, Any]:
    """Of the arguments."""
    return COMMON | (QUICKLY if quick else {}) | ({"limit": 60.0} if device == "cuda" else {})


def specs(options: Namespace) -> list[Spec]:
    """What the arguments ask for."""
    phases = {"main": "both", "inference": "inference"}
    return [
        Spec(
            table,
            problem,
            chosen(options, SUBJECTS),
            regime,
            roof=None,
            floor=None,
            host=True,
        )
        for table in TABLES
        if table in options.tables
        for regime in regimes(options)
        for rows, classes in options.shapes
        for dtype in options.dtypes
        for problem in [Problem(rows, classes, dtype, device=options.device, phase=phases[table])]
    ]


OVERHEAD = Suite(
    "tiny inputs: the way to the kernel and back", "NxK", TABLES, defaults, specs, notes=NOTES
)
