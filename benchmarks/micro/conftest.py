"""Measures a contender of the benchmarks with pytest-benchmark."""

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

from anl_kernels.backends.choice import BACKENDS, CPU, TRITON, why_not
from anl_kernels.settings import interpreting
from benchmarks.clocks import Step
from benchmarks.contenders import CONTENDERS, on_backend
from benchmarks.inputs import Inputs, make_inputs
from benchmarks.problems import Problem

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
    """``measure(contender, shape, dtype)``: a step of the contender, its inputs in no cache."""

    def run(
        name: str,
        shape: tuple[int, int],
        dtype: str = "float32",
        backend: str | None = None,
        queue: bool = False,
        hidden: int | None = None,
    ) -> None:
        """Measure a contender.

        Args:
            name: a key of ``CONTENDERS``.
            shape: rows and classes.
            dtype: of the logits.
            backend: the library's; None for its own choice, and for others.
            queue: on a GPU, stop the clock when the host has queued the step.
            hidden: size of the hidden state, of contenders with a head.
        """
        device = CPU if backend == CPU else DEVICE
        problem = Problem(*shape, dtype, device=device, hidden=hidden)
        step_on = _steps(name, problem, backend)
        wait = torch.cuda.synchronize if device != CPU else _nothing
        ends = _nothing if queue else wait

        def timed(step: Step) -> None:
            step()
            ends()

        def setup() -> tuple[tuple[Step], dict[str, Any]]:
            step = next(step_on)
            wait()
            return (step,), {}

        benchmark.group = f"{device}: {problem}"
        benchmark.extra_info |= {"contender": CONTENDERS[name].label, "backend": backend}
        rounds = _rounds(timed, setup) if benchmark.enabled else 1
        benchmark.pedantic(timed, setup=setup, rounds=rounds, warmup_rounds=1)

    return run


def _steps(name: str, problem: Problem, backend: str | None) -> Iterator[Step]:
    """On one copy of the inputs after the other."""
    inputs = _inputs(problem)
    prepare = CONTENDERS[name].build(inputs)
    if backend:
        prepare = on_backend(backend, prepare)
    return (prepare(i % len(inputs.leaves)) for i in count())


@lru_cache(maxsize=1)
def _inputs(problem: Problem) -> Inputs:
    return make_inputs(problem)


def _rounds(timed: Callable[[Step], None], setup: Callable[[], Any]) -> int:
    """As many as fit the time, judged by the second step: the first may compile."""
    for _ in range(2):
        (step,), _ = setup()
        start = perf_counter()
        timed(step)
        seconds = perf_counter() - start
    least, most = ROUNDS
    return min(most, max(least, int(SECONDS / seconds)))


def _nothing() -> None:
    pass
