"""Softmax and its gradient."""

from __future__ import annotations

import pytest

from benchmarks.micro.conftest import Measure

pytestmark = pytest.mark.benchmark(disable_gc=True)

Shape = tuple[int, int]
TRAFFIC = 5
"""Forward reads the logits and writes as much; backward reads twice that and writes it once."""


def test_softmax(measure: Measure, shape: Shape, dtype: str, backend: str) -> None:
    measure("softmax", shape, dtype, backend, traffic=TRAFFIC)


def test_peer(measure: Measure, shape: Shape, dtype: str) -> None:
    measure("softmax_torch", shape, dtype, traffic=TRAFFIC)
