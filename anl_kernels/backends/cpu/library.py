"""Loads the compiled extension with the kernels for this processor."""

from __future__ import annotations

import importlib
from functools import lru_cache
from types import ModuleType

import torch

INSTRUCTION_SETS = {"AVX512": "avx512", "AVX2": "avx2"}
"""The kernels for what PyTorch says of the processor; anything else gets "default".

``ATEN_CPU_CAPABILITY=avx2`` (or ``default``) in the environment chooses lesser ones, in PyTorch
and here.
"""


@lru_cache
def instruction_set() -> str:
    """The instruction set of the kernels that run here."""
    return INSTRUCTION_SETS.get(torch.backends.cpu.get_cpu_capability(), "default")


@lru_cache
def load() -> ModuleType:
    """The module of facts; loading it registers the operators ``torch.ops.anl_kernels_cpu``.

    Raises:
        ImportError: the extension was not built, or not for this PyTorch.
    """
    facts = importlib.import_module("anl_kernels._cpu")
    kernels = importlib.import_module(f"anl_kernels._cpu_{instruction_set()}")
    facts.set_kernels(kernels.kernels)
    return facts


@lru_cache
def why_not() -> str | None:
    """The reason that the extension cannot be used, or None."""
    try:
        load()
    except ImportError as error:
        return (
            f"the C++ extension cannot be loaded ({error}); build it with a C++ compiler and "
            f"this PyTorch: pip install --no-build-isolation -v anl_kernels"
        )
    return None
