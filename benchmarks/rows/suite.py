"""Arguments of the suite and the jobs they ask for."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from benchmarks.jobs import REGIMES, Job
from benchmarks.rows.measure import Shape
from benchmarks.rows.tables import render
from benchmarks.subjects import SUBJECTS
from benchmarks.suite import Suite
from benchmarks.timing import Budget

TABLES = ("main", "terms", "memory")
DTYPES = ("float32", "bfloat16", "float16", "float64")
SHAPES: list[Shape] = [
    (4096, 1000),
    (1024, 32000),
    (512, 128256),
    (128, 256000),
    (8, 1000000),
    (65536, 10),
    (128, 10),
]
TYPICAL_SHAPE = (1024, 32000)
"""Of the terms and of the memory."""
MEMORY_SUBJECTS = ("ours", "ours_inplace", "official", "cross_entropy")
QUICK = {
    "shapes": [(1024, 32000), (65536, 10), (128, 10)],
    "dtypes": ["float32"],
    "scales": [3.0],
    "tables": ["main", "memory"],
    "regime": "warm",
    "seconds": 1.0,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be asked of the suite."""
    add = parser.add_argument
    add("--shapes", nargs="+", type=_shape, default=SHAPES, metavar="NxK", help="of the main table")
    add("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=DTYPES)
    add("--scales", nargs="+", type=float, default=[1.0, 3.0, 5.0], help="sigma of the logits")
    add("--subjects", nargs="+", default=list(SUBJECTS), choices=SUBJECTS, help="of the main table")
    add("--tables", nargs="+", default=list(TABLES), choices=TABLES)
    add("--regime", choices=[*REGIMES, "both"], default="both", help="of the memory allocator")
    add("--rounds", type=int, default=500, help="at most, for each case")
    add("--seconds", type=float, default=2.0, help="for each case, unless that is too few rounds")


def gate(args: argparse.Namespace) -> Job:
    """What the other jobs measure, against float64."""
    asked = {
        "shapes": args.shapes if "main" in args.tables else [TYPICAL_SHAPE],
        "dtypes": args.dtypes,
        "scales": args.scales,
        "term_shapes": [TYPICAL_SHAPE] if "terms" in args.tables else [],
    }
    return Job("benchmarks.rows.measure:gate", asked, label="correctness gate")


def jobs(args: argparse.Namespace) -> list[Job]:
    """A process for each shape and regime, for the terms, and for each figure of memory."""
    regimes = list(REGIMES) if args.regime == "both" else [args.regime]
    timed = {"dtypes": args.dtypes, "budget": asdict(Budget(args.seconds, args.rounds))}
    main = {"scales": args.scales, "subjects": args.subjects, **timed}
    found = {
        "main": [
            _job("main", regime, shape, len(args.dtypes) * len(args.scales), **main)
            for regime in regimes
            for shape in args.shapes
        ],
        # One regime: every term writes one gradient, so page faults would only blur them.
        "terms": [_job("terms", regimes[-1], TYPICAL_SHAPE, len(args.dtypes), **timed)],
        # The default one: a heap that keeps freed memory would hide what is measured.
        "memory": [
            _job("memory", "default", TYPICAL_SHAPE, dtype="float32", subject=name)
            for name in MEMORY_SUBJECTS
        ],
    }
    return [job for name in TABLES if name in args.tables for job in found[name]]


def _job(name: str, regime: str, shape: Shape, cases: int = 1, **arguments: Any) -> Job:
    arguments |= {"regime": regime, "shape": shape}
    label = f"{name} {shape[0]} x {shape[1]}, {regime}"
    return Job(f"benchmarks.rows.measure:{name}", arguments, label, regime, cases)


def _shape(text: str) -> Shape:
    rows, classes = text.split("x")
    return int(rows), int(classes)


ROWS = Suite("loss and gradient of given logits", add_arguments, QUICK, gate, jobs, render)
