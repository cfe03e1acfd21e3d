"""The head and the loss together, with a head so narrow that its products leave the rest to see."""

from __future__ import annotations

import pytest

from benchmarks.micro.conftest import Measure

pytestmark = pytest.mark.benchmark(disable_gc=True)

Shape = tuple[int, int]
HIDDEN = 64


@pytest.mark.parametrize("subject", ["linear_fused", "linear_unfused"])
def test_anl(measure: Measure, subject: str, shape: Shape, dtype: str, backend: str) -> None:
    measure(subject, shape, dtype, backend, traffic=None, hidden=HIDDEN)


def test_peer(measure: Measure, shape: Shape, dtype: str) -> None:
    measure("linear_unfused_cross_entropy", shape, dtype, traffic=None, hidden=HIDDEN)
