"""Loss and gradient of given logits."""

from __future__ import annotations

import pytest

from benchmarks.micro.conftest import Measure
from benchmarks.subjects.library import term_instances

pytestmark = pytest.mark.benchmark(disable_gc=True)

Shape = tuple[int, int]


@pytest.mark.parametrize("subject", ["ours", "ours_inplace"])
def test_anl(measure: Measure, subject: str, shape: Shape, dtype: str, backend: str) -> None:
    measure(subject, shape, dtype, backend)


@pytest.mark.parametrize("subject", ["cross_entropy", "official"])
def test_peer(measure: Measure, subject: str, shape: Shape, dtype: str) -> None:
    measure(subject, shape, dtype)


@pytest.mark.parametrize("term", term_instances())
def test_term(measure: Measure, term: str, last_shape: Shape) -> None:
    measure(term, last_shape, "float32")
