"""Measures a subject of the benchmarks with pytest-benchmark."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count
from time import perf_counter
from typing import Any

import pytest
import torch
from pytest_benchmark.logger import PytestBenchmarkWarning

from anl_kernels.backends.selection import BACKENDS, CPU, TRITON, interpreting, why_not
from benchmarks.clocks import Step
from benchmarks.inputs import Inputs, make_inputs
from benchmarks.problems import Problem
from benchmarks.subjects import SUBJECTS, on_backend

SHAPES = "128x10,4096x1000,256x32000"
DTYPES = "float32", "bfloat16"
SECONDS = 0.4
"""Of each benchmark, unless that is too few rounds."""
ROUNDS = 5, 1000
"""The least and the most."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Measure = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shapes", default=SHAPES, metavar="NxK,...", help="rows x classes")


def pytest_configure() -> None:
    """Warn, and not more, of figures to compare with that are another machine's."""
    warnings.filterwarnings("default", category=PytestBenchmarkWarning)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Without the clock of the moment, by which a machine would differ from itself."""
    cpu = machine_info["cpu"]
    machine_info["cpu"] = {k: v for k, v in cpu.items() if not k.startswith("hz_actual")}


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``shape`` is each one of the command line, ``last_shape`` is the last one.

    First, so that what has the same inputs comes one after the other.
    """
    shapes = metafunc.config.getoption("--shapes").split(",")
    for name, wanted in {"shape": shapes, "last_shape": shapes[-1:]}.items():
        if name in metafunc.fixturenames:
            sizes = [tuple(map(int, shape.split("x"))) for shape in wanted]
            metafunc.parametrize(name, sizes, ids=wanted)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> str:
    """Of the logits."""
    return request.param


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each one of the library's that runs here."""
    reason = why_not(request.param)
    if request.param == TRITON and interpreting():
        reason = "Triton's interpreter is not worth measuring"
    if reason:
        pytest.skip(reason)
    return request.param


@pytest.fixture
def measure(benchmark: Any) -> Measure:
    """``measure(subject, shape, dtype)``: a step of the subject, its inputs in no cache."""

    def run(
        name: str,
        shape: tuple[int, int],
        dtype: str,
        backend: str | None = None,
        traffic: float | None = 2,
        queue: bool = False,
        hidden: int | None = None,
    ) -> None:
        """Measure a subject.

        Args:
            name: a key of ``SUBJECTS``.
            shape: rows and classes.
            dtype: of the logits.
            backend: the library's; None for its own choice, and for others.
            traffic: what has to be moved, in sizes of the logits; None if that says nothing.
            queue: on a GPU, stop the clock when the host has queued the step.
            hidden: size of the hidden state, of subjects with a head.
        """
        device = CPU if backend == CPU else DEVICE
        problem = Problem(*shape, dtype, device=device, hidden=hidden)
        step_on = _steps(name, problem, backend)
        wait = _synchronize if problem.device != CPU else _nothing
        ends = _nothing if queue else wait

        def target(step: Step) -> None:
            step()
            ends()

        def setup() -> tuple[tuple[Step], dict[str, Any]]:
            step = next(step_on)
            wait()
            return (step,), {}

        benchmark.group = f"{problem.device}: {problem}"
        benchmark.extra_info |= {"subject": SUBJECTS[name].label, "backend": backend}
        rounds = _rounds(target, setup) if benchmark.enabled else 1
        benchmark.pedantic(target, setup=setup, rounds=rounds, warmup_rounds=1)
        if traffic and benchmark.enabled:
            moved = traffic * problem.logits_bytes
            speed = moved / benchmark.stats.stats.median / 1e9
            benchmark.extra_info |= {"bytes": moved, "GB/s": float(f"{speed:.4g}")}

    return run


def _steps(name: str, problem: Problem, backend: str | None) -> Iterator[Step]:
    """On one copy of the inputs after the other."""
    inputs = _inputs(problem)
    prepare = SUBJECTS[name].build(inputs)
    if backend:
        prepare = on_backend(backend, prepare)
    return (prepare(i % len(inputs.leaves)) for i in count())


@lru_cache(maxsize=1)
def _inputs(problem: Problem) -> Inputs:
    return make_inputs(problem)


def _rounds(target: Callable[..., None], setup: Callable[[], Any]) -> int:
    """As many as fit the time, judged by the second step: the first may compile."""
    for _ in range(2):
        (step,), _ = setup()
        start = perf_counter()
        target(step)
        seconds = perf_counter() - start
    least, most = ROUNDS
    return min(most, max(least, int(SECONDS / seconds)))


def _synchronize() -> None:
    torch.cuda.synchronize()


def _nothing() -> None:
    pass
