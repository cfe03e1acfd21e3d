"""What a call costs when there is next to nothing to compute."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from functools import partial

from benchmarks.problems import Problem
from benchmarks.suite import Arguments, Spec, Suite, Table
from benchmarks.suites.choices import chosen, each
from benchmarks.targets import Target, of_shape

CONTENDERS = (
    "ours", "ours_function", "triton", "cuda", "ours_compiled", "cross_entropy",
    "compiled_cross_entropy", "compiled", "careful", "official", "quack", "flash_attn",
)  # fmt: skip
QUICK = ("ours", "ours_function", "cross_entropy", "official")
IMPORTS = 7
"""Processes, each of which imports the library once."""
NOTES = """\
On a GPU the time is the host's, to queue the step: for tiny inputs the GPU waits for it. The \
import is timed after that of torch, each time in a process of its own."""

COMMON: Arguments = {
    "shapes": [(1, 10), (128, 10), (128, 100), (8, 1000), (1, 32000)],
    "dtypes": ["float32", "bfloat16"],
    "regime": "default",
    "seconds": 1.0,
}
LIMITED: Arguments = {"limit": 60.0}
QUICKLY: Arguments = {
    "shapes": [(1, 10), (128, 10)],
    "dtypes": ["float32"],
    "tables": ["main"],
    "contenders": list(QUICK),
    "seconds": 0.3,
}


def _specs(table: str, phase: str, options: Namespace) -> Iterator[Spec]:
    for regime, (rows, classes), dtype in each(options, options.shapes):
        problem = Problem(rows, classes, dtype, device=options.device, phase=phase)
        contenders = chosen(options, CONTENDERS)
        yield Spec(table, problem, contenders, regime, roofline=None, floor=None, clock="host")


def _import(options: Namespace) -> Iterator[Spec]:
    nothing = Problem(0, 2, device=options.device)
    yield Spec(
        "import", nothing, ("import_ours",), roofline=None, floor=None, ours="import_ours",
        clock="own", rounds=IMPORTS,
    )  # fmt: skip


def _over_cross_entropy(what: str, ours: str, peer: str, most: float) -> Iterator[Target]:
    """A target for each cell in which the way to the kernel and back is most of the time."""
    for rows, classes in COMMON["shapes"][:4]:
        for dtype in COMMON["dtypes"]:
            title = f"{what}, {rows} x {classes} {dtype}"
            concerns = of_shape(rows, classes, dtype)
            yield Target(title, ours, peer, "<=", most, concerns=concerns)


TARGETS = (
    *_over_cross_entropy("ours / CE", "ours", "cross_entropy", 1.0),
    *_over_cross_entropy("compiled: ours / CE", "ours_compiled", "compiled_cross_entropy", 1.2),
    Target("import after torch, ms", "import_ours", None, "<=", 30, ("import",)),
)


OVERHEAD = Suite(
    "tiny inputs: the way to the kernel and back",
    "NxK",
    tables={
        "main": Table("A call, forward and backward", partial(_specs, "main", "both")),
        "inference": Table("A call without a gradient", partial(_specs, "inference", "inference")),
        "import": Table("Import", _import),
    },
    settings={"cpu": (COMMON, QUICKLY), "cuda": (COMMON | LIMITED, QUICKLY)},
    notes=NOTES,
    targets=TARGETS,
)
