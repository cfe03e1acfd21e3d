"""Softmax alone."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from functools import partial

from benchmarks.problems import Problem
from benchmarks.suite import Arguments, Spec, Suite, Table
from benchmarks.suites.choices import chosen, each

CONTENDERS = (
    "softmax", "softmax_triton", "softmax_cuda", "copy", "softmax_torch", "softmax_compiled",
    "softmax_liger", "softmax_quack",
)  # fmt: skip
QUICK = ("softmax", "copy", "softmax_torch")
FLOORS = {"both": 2.5, "inference": 1.0}
"""Over a copy: forward reads and writes, backward reads two and writes one."""

CPU: Arguments = {
    "shapes": [(4096, 1000), (1024, 32000), (256, 128256)],
    "dtypes": ["float32", "bfloat16"],
    "regime": "both",
    "seconds": 1.0,
}
CPU_QUICK: Arguments = {
    "shapes": [(512, 32000)],
    "dtypes": ["float32"],
    "regime": "warm",
    "contenders": list(QUICK),
    "seconds": 0.3,
}
CUDA: Arguments = CPU | {
    "shapes": [(8192, 131072), (8192, 32768), (65536, 1000)],
    "dtypes": ["bfloat16", "float32"],
    "regime": "default",
    "seconds": 0.5,
    "limit": 90.0,
}
CUDA_QUICK: Arguments = {"shapes": [(8192, 32768)], "dtypes": ["bfloat16"], "limit": 60.0}


def _specs(table: str, phase: str, options: Namespace) -> Iterator[Spec]:
    for regime, (rows, classes), dtype in each(options, options.shapes):
        problem = Problem(rows, classes, dtype, device=options.device, phase=phase)
        contenders = chosen(options, CONTENDERS)
        yield Spec(table, problem, contenders, regime, floor=FLOORS[phase], ours="softmax")


SOFTMAX = Suite(
    "softmax and its gradient",
    "NxK",
    tables={
        "main": Table("Softmax and its gradient", partial(_specs, "main", "both")),
        "inference": Table("Softmax alone", partial(_specs, "inference", "inference")),
    },
    settings={"cpu": (CPU, CPU_QUICK), "cuda": (CUDA, CUDA_QUICK)},
)
