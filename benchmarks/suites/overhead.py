"""What a call costs when there is next to nothing to compute."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from benchmarks.problems import Problem
from benchmarks.suite import Arguments, Spec, Suite, Table
from benchmarks.suites.choices import chosen, each

SUBJECTS = (
    "ours", "ours_function", "triton", "cuda", "ours_compiled", "cross_entropy",
    "compiled_cross_entropy", "compiled", "careful", "official", "quack", "flash_attn",
)  # fmt: skip
QUICK = ("ours", "ours_function", "cross_entropy", "official")
NOTES = "On a GPU the time is the host's, to queue the step: for tiny inputs the GPU waits for it."

COMMON: Arguments = {
    "shapes": [(1, 10), (128, 10), (128, 100), (8, 1000), (1, 32000)],
    "dtypes": ["float32"],
    "regime": "default",
    "seconds": 1.0,
}
LIMITED: Arguments = {"limit": 60.0}
QUICKLY: Arguments = {
    "shapes": [(1, 10), (128, 10)],
    "tables": ["main"],
    "subjects": list(QUICK),
    "seconds": 0.3,
}


def _main(options: Namespace) -> Iterator[Spec]:
    return _specs("main", "both", options)


def _inference(options: Namespace) -> Iterator[Spec]:
    return _specs("inference", "inference", options)


def _specs(table: str, phase: str, options: Namespace) -> Iterator[Spec]:
    for regime, (rows, classes), dtype in each(options, options.shapes):
        problem = Problem(rows, classes, dtype, device=options.device, phase=phase)
        subjects = chosen(options, SUBJECTS)
        yield Spec(table, problem, subjects, regime, roof=None, floor=None, host=True)


OVERHEAD = Suite(
    "tiny inputs: the way to the kernel and back",
    "NxK",
    tables={
        "main": Table("A call, forward and backward", _main),
        "inference": Table("A call without a gradient", _inference),
    },
    settings={"cpu": (COMMON, QUICKLY), "cuda": (COMMON | LIMITED, QUICKLY)},
    notes=NOTES,
)
