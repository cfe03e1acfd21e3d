"""Contenders by shape, dtype and backend of the library."""

from __future__ import annotations

import pytest

from benchmarks.contenders.library import term_instances
from benchmarks.micro.conftest import DTYPES, Measure

pytestmark = pytest.mark.benchmark(disable_gc=True)

Shape = tuple[int, int]
HIDDEN = {"linear_fused": 64, "linear_unfused": 64, "linear_unfused_cross_entropy": 64}
"""So small that the products leave the rest to see."""
LIBRARY = "ours", "ours_inplace", "linear_fused", "linear_unfused", "softmax"
PEERS = "cross_entropy", "official", "linear_unfused_cross_entropy", "softmax_torch"
TINY = 1, 10
"""What is left is the way to the kernel and back."""


@pytest.mark.parametrize("contender", LIBRARY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_library(measure: Measure, contender: str, shape: Shape, dtype: str, backend: str) -> None:
    measure(contender, shape, dtype, backend, hidden=HIDDEN.get(contender))


@pytest.mark.parametrize("contender", PEERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_peer(measure: Measure, contender: str, shape: Shape, dtype: str) -> None:
    measure(contender, shape, dtype, hidden=HIDDEN.get(contender))


@pytest.mark.parametrize("term", term_instances())
def test_term(measure: Measure, term: str, last_shape: Shape) -> None:
    measure(term, last_shape)


@pytest.mark.parametrize("contender", ["ours", "ours_function", "softmax"])
def test_overhead_of_the_library(measure: Measure, contender: str, backend: str) -> None:
    measure(contender, TINY, backend=backend, queue=True)


@pytest.mark.parametrize("contender", ["cross_entropy", "official", "softmax_torch"])
def test_overhead_of_peers(measure: Measure, contender: str) -> None:
    measure(contender, TINY, queue=True)
