"""The CUDA backend on a machine without a GPU: its kernels, run by the emulation."""

import sys
from pathlib import Path

import anl_kernels
from tests.cuda.emulation import build

CSRC = Path(__file__).parents[2] / "csrc" / "cuda"
FOLDER = "cuda_backend"
SOURCES = [CSRC / "ops.cpp", CSRC / "module.cpp", *sorted(CSRC.glob("*.cu"))]

reason: str | None = None
"""Why there is no emulation on this machine."""
error: str | None = None
"""What the compiler or the linker said of the kernels, if they are wrong."""


def install():
    """Put the emulated module where the package looks for its CUDA extension.

    Builds it unless that was done. To be called before anything asks for a backend.
    """
    global reason, error
    reason = build.why_not()
    if reason:
        return
    try:
        module = build.load("_cuda", SOURCES, folder=FOLDER, with_torch=True)
    except (RuntimeError, ImportError) as failure:
        error = f"the CUDA kernels cannot be built for the emulation: {failure}"
        return
    sys.modules["anl_kernels._cuda"] = anl_kernels._cuda = module
