"""Loads the compiled extension with the CUDA kernels, and says where they run."""

from __future__ import annotations

import importlib
import re
from functools import lru_cache
from types import ModuleType

import torch

OLDEST = (8, 0)
"""The compute capability that the kernels need: they copy memory asynchronously."""

BUILD = "FORCE_CUDA=1 pip install --force-reinstall --no-deps -v ."

Capability = tuple[int, int]


@lru_cache
def load() -> ModuleType:
    """The module of facts; loading it registers the operators ``torch.ops.anl_kernels_cuda``.

    The test suite puts another one in its place, whose kernels a CPU emulates.

    Raises:
        ImportError: the extension was not built, or not for this PyTorch.
    """
    return importlib.import_module("anl_kernels._cuda")


def facts() -> str:
    """What compiled the kernels, and for what, for people."""
    module = load()
    if module.device_type != "cuda":
        return f"emulated on a CPU: for tests, slow; {module.compiler()}"
    return f"CUDA {module.cuda_version()} for {module.architectures()}, {module.compiler()}"


@lru_cache
def why_not() -> str | None:
    """The reason that the kernels cannot run on this machine, or None."""
    if torch.version.hip:
        return "the CUDA kernels are for NVIDIA GPUs, and this PyTorch is for ROCm"
    try:
        module = load()
    except ImportError as error:
        return _not_built(error)
    if module.device_type != "cuda":
        return None
    if not torch.cuda.is_available():
        return "no CUDA device is visible"
    reasons = [why_not_on(index) for index in range(torch.cuda.device_count())]
    return None if None in reasons else reasons[0]


@lru_cache
def why_not_on(index: int) -> str | None:
    """The reason that the kernels cannot run on one of the machine's GPUs, or None."""
    return why_not_for(torch.cuda.get_device_capability(index), load().architectures())


def why_not_for(capability: Capability, architectures: str) -> str | None:
    """The reason that kernels compiled for ``8.0;9.0+PTX``, say, cannot run on a GPU, or None."""
    has = "{}.{}".format(*capability)
    if capability < OLDEST:
        least = "{}.{}".format(*OLDEST)
        return f"the GPU has compute capability {has}, the CUDA kernels need {least} or newer"
    if any(_runs(name, capability) for name in architectures.split(";")):
        return None
    return (
        f"the GPU has compute capability {has}, the CUDA kernels are compiled for {architectures}; "
        f"build them for it: TORCH_CUDA_ARCH_LIST={has} {BUILD}"
    )


def _runs(architecture: str, capability: Capability) -> bool:
    """Machine code runs on later GPUs of its generation, PTX on all later ones."""
    match = re.fullmatch(r"(\d+)\.(\d+)(\w?)(\+PTX)?", architecture)
    if not match:  # a name, such as Hopper: whoever built it will know
        return True
    compiled = int(match[1]), int(match[2])
    if match[3]:  # 9.0a runs on 9.0, and nowhere else
        return capability == compiled
    return compiled <= capability and (bool(match[4]) or compiled[0] == capability[0])


def _not_built(error: ImportError) -> str:
    if torch.version.cuda is None:
        return (
            f"this PyTorch ({torch.__version__}) is without CUDA; install one with it, then {BUILD}"
        )
    return (
        f"the CUDA extension cannot be loaded ({error}); build it with nvcc, of the CUDA "
        f"{torch.version.cuda} that this PyTorch has: {BUILD}"
    )
