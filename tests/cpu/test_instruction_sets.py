"""Every instruction set that this machine and the build have, each in a process of its own."""

import importlib.util
from pathlib import Path

import pytest
import torch

from anl_kernels.backends import choice
from tests.cpu.processes import run_script

CAPABILITIES = {"default": "DEFAULT", "avx2": "AVX2", "avx512": "AVX512"}


@pytest.fixture(params=CAPABILITIES)
def instruction_set(request):
    """Runs a script with the kernels of one instruction set."""
    name = request.param
    if importlib.util.find_spec(f"anl_kernels._cpu_{name}") is None:
        pytest.skip(f"the kernels for {name} are not built")
    best = list(CAPABILITIES).index(choice.instruction_set())
    if list(CAPABILITIES).index(name) > best:
        pytest.skip(f"this processor, or ATEN_CPU_CAPABILITY, has no {name}")
    return name


@pytest.mark.parametrize("script", ["conversions", "losses", "math", "shards"])
def test_script(script, instruction_set):
    code = (Path(__file__).parent / "scripts" / f"{script}.py").read_text()
    printed = run_script(code, ATEN_CPU_CAPABILITY=instruction_set)
    assert printed.split() == [instruction_set, torch.__version__]
