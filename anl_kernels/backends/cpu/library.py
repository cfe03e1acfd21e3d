"""Loads the compiled extension with the kernels for this processor."""

from __future__ import annotations

import importlib
import os
import warnings
from functools import lru_cache
from types import ModuleType

import torch

INSTRUCTION_SETS = {"AVX512": "avx512", "AVX2": "avx2"}
"""The kernels for what PyTorch says of the processor; anything else gets "default".

``ATEN_CPU_CAPABILITY=avx2`` (or ``default``) in the environment chooses lesser ones, in PyTorch
and here.
"""


CACHE_VARIABLE = "ANL_KERNELS_CPU_CACHE_MB"


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
    module = importlib.import_module("anl_kernels._cpu")
    kernels = importlib.import_module(f"anl_kernels._cpu_{instruction_set()}")
    module.set_kernels(kernels.kernels)
    limit = os.environ.get(CACHE_VARIABLE)
    if limit and limit.isdecimal():
        module.set_cache_limit(min(int(limit) << 20, 1 << 62))
    elif limit:
        warnings.warn(
            f"{CACHE_VARIABLE} must be a whole number of MiB, got {limit!r}: not used", stacklevel=2
        )
    return module


def empty_cpu_cache() -> None:
    """Give the memory of released gradients back to the system.

    The CPU kernels keep it for the next gradients, up to an eighth of the machine's memory or
    ``ANL_KERNELS_CPU_CACHE_MB`` in the environment.
    """
    if why_not() is None:
        load().empty_cache()


def facts() -> str:
    """Which kernels run, and what compiled them, for people."""
    module = load()
    return f"{instruction_set()} kernels, {module.compiler()}, OpenMP {module.openmp}"


@lru_cache
def why_not() -> str | None:
    """The reason that the extension cannot be used, or None."""
    try:
        load()
    except ImportError as error:
        return (
            f"the C++ extension cannot be loaded ({error}); build it with a C++ compiler and "
            f"this PyTorch: in a checkout, pip install --force-reinstall --no-deps -v ."
        )
    return None
