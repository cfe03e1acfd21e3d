"""Softmax alone."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from benchmarks.problems import Problem
from benchmarks.suite import Spec, Suite
from benchmarks.suites.choices import chosen, regimes

SUBJECTS = (
    "softmax", "softmax_triton", "softmax_cuda", "copy", "softmax_torch", "softmax_compiled",
    "softmax_liger", "softmax_quack",
)  # fmt: skip
QUICK = ("softmax", "copy", "softmax_torch")
FLOORS = {"both": 2.5, "inference": 1.0}
"""Over a copy: forward reads and writes, backward reads two and writes one."""
TABLES = {"main": "Softmax and its gradient", "inference": "Softmax alone"}

CPU: dict[str, Any] = {
    "shapes": [(4096, 1000), (1024, 32000), (256, 128256)],
    "dtypes": ["float32", "bfloat16"],
    "tables": list(TABLES),
    "regime": "both",
    "seconds": 1.0,
}
CPU_QUICK: dict[str, Any] = {
    "shapes": [(512, 32000)],
    "dtypes": ["float32"],
    "regime": "warm",
    "subjects": list(QUICK),
    "seconds": 0.3,
}
CUDA: dict[str, Any] = CPU | {
    "shapes": [(8192, 131072), (8192, 32768), (65536, 1000)],
    "dtypes": ["bfloat16", "float32"],
    "regime": "default",
    "seconds": 0.5,
    "limit": 90.0,
}
CUDA_QUICK: dict[str, Any] = {"shapes": [(8192, 32768)], "dtypes": ["bfloat16"], "limit": 60.0}


def defaults(device: str, quick: bool) -> dict[str, Any]:
    """Of the arguments."""
    full, less = (CUDA, CUDA_QUICK) if device == "cuda" else (CPU, CPU_QUICK)
    return full | (less if quick else {})


def specs(options: Namespace) -> list[Spec]:
    """What the arguments ask for."""
    phases = {"main": "both", "inference": "inference"}
    return [
        Spec(table, problem, chosen(options, SUBJECTS), regime, floor=FLOORS[problem.phase],
             ours="softmax")
        for table in TABLES
        if table in options.tables
        for regime in regimes(options)
        for rows, classes in options.shapes
        for dtype in options.dtypes
        for problem in [
            Problem(rows, classes, dtype, device=options.device, phase=phases[table])
        ]
    ]  # fmt: skip


SOFTMAX = Suite("softmax and its gradient", "NxK", TABLES, defaults, specs)
