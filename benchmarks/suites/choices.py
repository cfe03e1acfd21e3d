"""What the suites do with arguments alike."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from itertools import product

from benchmarks.contenders import CONTENDERS
from benchmarks.gate import runs
from benchmarks.jobs import REGIMES

Shape = tuple[int, ...]

GPU_BACKENDS = ("triton", "cuda")
"""The library's, each of which is measured beside what "auto" takes."""


def chosen(options: Namespace, names: Iterable[str]) -> tuple[str, ...]:
    """Of these contenders the ones for the device."""
    return tuple(name for name in names if options.device in CONTENDERS[name].devices)


def regimes(options: Namespace) -> list[str]:
    """Of the memory allocator."""
    return list(REGIMES) if options.regime == "both" else [options.regime]


def each(options: Namespace, shapes: Iterable[Shape]) -> Iterator[tuple[str, Shape, str]]:
    """Regime, shape and dtype of each case, those in one process after each other."""
    return product(regimes(options), shapes, options.dtypes)


def library_backends(device: str) -> list[str]:
    """The library's backends that all of its terms are measured on."""
    running = [name for name in GPU_BACKENDS if device != "cpu" and runs(name)]
    return running or ["auto"]
