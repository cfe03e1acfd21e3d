"""An output of rows is declared in two places; what carries it names none."""

import re
from pathlib import Path

import pytest

import anl_kernels
from anl_kernels.interface import AUX, BITS, RowOutputs

PACKAGE = Path(anl_kernels.__file__).parent
SOURCES = PACKAGE.parent / "csrc"
CARRIERS = [
    *(PACKAGE / "backends" / name for name in ("operators.py", "batching.py", "compiled.py")),
    PACKAGE / "rows" / "operators.py",
    *(SOURCES / name for name in ("operators.h", "bindings.h", "cpu/ops.cpp", "cuda/ops.cpp")),
]


def test_every_output_has_a_bit_of_its_own():
    assert list(BITS) == list(RowOutputs._fields)
    assert [1 << place for place in range(len(BITS))] == list(BITS.values())


@pytest.mark.parametrize("file", CARRIERS, ids=lambda file: file.name)
def test_what_carries_outputs_names_none(file):
    if not file.exists():
        pytest.skip("an installed package, without the sources in C++")
    words = set(re.findall(r"\w+", file.read_text()))
    assert not words.intersection(AUX)
