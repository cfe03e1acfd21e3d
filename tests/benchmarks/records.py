"""Runs written by hand."""

import argparse
import subprocess
import time
from dataclasses import replace

from benchmarks.problems import Problem
from benchmarks.results import Case, Check, Measurement, Quantiles, Results
from benchmarks.suites import SUITES

SPREAD = Quantiles(1.0, 1.5, 1.75, 2.0, 3.0, 4.0, 6.0, 9)


def case(*measurements, table="main", regime="warm", others=0.0, **changes):
    problem = Problem(**{"rows": 1024, "classes": 32000} | changes)
    return Case(table, regime, problem, list(measurements), taken_by_others=others)


def measured(contender, **ratios):
    return Measurement(contender, contender.upper(), SPREAD, ratios, first_call_ms=8.0)


def results(*cases, failures=(), suite="rows"):
    return Results(
        suite=suite,
        created="2026-01-02T03:04:05+00:00",
        environment={
            "machine": {
                "cpu": "a CPU",
                "cores": 2,
                "threads": 2,
                "isa": "AVX2",
                "last_level_cache_bytes": 1 << 25,
                "memory_bytes": 1 << 34,
                "kernel": "Linux 6",
                "load_average_before": 0.25,
            },
            "versions": {"python": "3.12", "torch": "2.13", "triton": None, "anl_kernels": "0.1"},
            "git": {"commit": "abc", "dirty": True},
        },
        arguments={"shapes": ["1024x32000"], "out": "file.json"},
        backend="cpu",
        checks=[Check("loss", 1e-8, 1e-6)],
        cases=list(cases),
        failures=list(failures),
        seconds=12.5,
    )


GPU = {
    "name": "NVIDIA X100 (80 GB)",
    "capability": "9.0",
    "multiprocessors": 132,
    "l2_bytes": 60 << 20,
    "memory_bytes": 80 << 30,
    "driver": "580.1",
    "visible": 1,
}


def on_gpu(case, **changes):
    """The case as a GPU would have it."""
    problem = replace(case.problem, device="cuda")
    return replace(case, problem=problem, regime="default", **changes)


def gpu_results(*cases, failures=()):
    run = results(*cases, failures=failures)
    run.environment["machine"]["gpu"] = GPU
    arguments = run.arguments | {"device": "cuda"}
    return replace(run, arguments=arguments, backend="auto")


def options(suite, device="cpu", quick=False, **changes):
    """What the command line would give to a suite."""
    common = {"device": device, "rounds": 500, "contenders": None, "threads": None}
    return argparse.Namespace(**common | SUITES[suite].defaults(device, quick) | changes)


def slow():
    """A job that does not end in time."""
    time.sleep(30)
    yield


def lengths(texts):
    """A job that tells what it was given."""
    yield Problem(sum(map(len, texts)), 2)


def with_a_child():
    """A job that starts a process, tells which, and does not end in time."""
    yield Problem(subprocess.Popen(["sleep", "30"]).pid, 2)
    time.sleep(30)
