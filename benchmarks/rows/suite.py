"""Arguments of the suite and the jobs they ask for."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from anl_kernels.backends.selection import BACKENDS, why_not
from benchmarks.jobs import REGIMES, Job
from benchmarks.rows.defaults import defaults
from benchmarks.rows.measure import Shape
from benchmarks.rows.tables import render
from benchmarks.subjects import SUBJECTS
from benchmarks.suite import Suite
from benchmarks.timing import Budget

TABLES = ("main", "terms", "memory")
DTYPES = ("float32", "bfloat16", "float16", "float64")
MEMORY_SUBJECTS = ("ours", "ours_inplace", "official", "cross_entropy")
GPU_BACKENDS = ("triton", "cuda")
"""The library's, each of which is measured beside what "auto" takes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be asked of the suite; what is asked by default, see defaults.py."""
    add = parser.add_argument
    add("--shapes", nargs="+", type=_shape, metavar="NxK", help="of the main table")
    add("--typical-shape", type=_shape, metavar="NxK", help="of the terms and of the memory")
    add("--dtypes", nargs="+", choices=DTYPES, help="of the logits")
    add("--term-dtypes", nargs="+", choices=DTYPES, help="of the terms; --dtypes if not given")
    add("--scales", nargs="+", type=float, help="sigma of the logits")
    add("--subjects", nargs="+", choices=SUBJECTS, help="of the main table")
    add("--tables", nargs="+", choices=TABLES, help="what to measure")
    add("--regime", choices=[*REGIMES, "both"], help="of the CPU's memory allocator")
    add("--rounds", type=int, default=500, help="at most, for each case")
    add("--seconds", type=float, help="for each case, unless that is too few rounds")


def complaint(args: argparse.Namespace) -> str | None:
    """Why arguments do not go together."""
    if args.device == "cpu":
        return None
    if args.regime != "default":
        return f"--regime {args.regime} is about the CPU's allocator: leave it out on {args.device}"
    if "memory" in args.tables:
        return f"--tables memory: on {args.device} the main table has the memory"
    return None


def gate(args: argparse.Namespace) -> Job:
    """What the other jobs measure, against float64."""
    named = [SUBJECTS[name].backend for name in args.subjects]
    asked = {
        "shapes": args.shapes if "main" in args.tables else [args.typical_shape],
        "dtypes": args.dtypes,
        "scales": args.scales,
        "term_shapes": [args.typical_shape] if "terms" in args.tables else [],
        "term_dtypes": args.term_dtypes or args.dtypes,
        "device": args.device,
        "backends": [name for name in dict.fromkeys(named) if name and _runs(name)],
        "term_backends": term_backends(args.device),
    }
    return Job("benchmarks.rows.measure:gate", asked, label="correctness gate")


def jobs(args: argparse.Namespace) -> list[Job]:
    """A process for each shape and regime, for the terms, and for each figure of memory."""
    regimes = list(REGIMES) if args.regime == "both" else [args.regime]
    timed = {"budget": asdict(Budget(args.seconds, args.rounds)), "device": args.device}
    main = {"dtypes": args.dtypes, "scales": args.scales, "subjects": args.subjects, **timed}
    typical, terms = args.typical_shape, {"dtypes": args.term_dtypes or args.dtypes, **timed}
    found = {
        "main": [
            _job("main", regime, shape, len(args.dtypes) * len(args.scales), **main)
            for regime in regimes
            for shape in args.shapes
        ],
        # One regime: every term writes one gradient, so page faults would only blur them.
        "terms": [
            _job("terms", regimes[-1], typical, len(terms["dtypes"]), backend=backend, **terms)
            for backend in term_backends(args.device)
        ],
        # The default one: a heap that keeps freed memory would hide what is measured.
        "memory": [
            _job("memory", "default", typical, dtype="float32", subject=name)
            for name in MEMORY_SUBJECTS
        ],
    }
    return [job for name in TABLES if name in args.tables for job in found[name]]


def term_backends(device: str) -> list[str]:
    """The library's backends that every term is measured on."""
    running = [name for name in GPU_BACKENDS if device != "cpu" and _runs(name)]
    return running or ["auto"]


def _runs(backend: str) -> bool:
    return backend == "auto" or (backend in BACKENDS and why_not(backend) is None)


def _job(name: str, regime: str, shape: Shape, cases: int = 1, **arguments: Any) -> Job:
    arguments |= {"regime": regime, "shape": shape}
    device, backend = arguments.get("device", "cpu"), arguments.get("backend", "auto")
    how = regime if device == "cpu" else f"{device}, {backend}"
    label = f"{name} {shape[0]} x {shape[1]}, {how}"
    return Job(f"benchmarks.rows.measure:{name}", arguments, label, regime, cases)


def _shape(text: str) -> Shape:
    rows, classes = text.split("x")
    return int(rows), int(classes)


ROWS = Suite(
    "loss and gradient of given logits",
    add_arguments,
    defaults,
    complaint,
    gate,
    jobs,
    render,
)
