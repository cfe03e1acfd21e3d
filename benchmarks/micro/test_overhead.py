"""What a call costs the host when there is next to nothing to compute."""

from __future__ import annotations

import pytest

from benchmarks.micro.conftest import Measure

pytestmark = pytest.mark.benchmark(disable_gc=True)

SHAPE = 1, 10
LIBRARY = "ours", "ours_function", "softmax"
PEERS = "cross_entropy", "official", "softmax_torch"


@pytest.mark.parametrize("subject", LIBRARY)
def test_library(measure: Measure, subject: str, backend: str) -> None:
    measure(subject, SHAPE, "float32", backend, traffic=None, queue=True)


@pytest.mark.parametrize("subject", PEERS)
def test_peer(measure: Measure, subject: str) -> None:
    measure(subject, SHAPE, "float32", traffic=None, queue=True)
