"""Build script: the metadata lives in pyproject.toml, the C++ extensions here.

They need torch and a compiler while building: ``pip install --no-build-isolation .``. Without
either the package installs and works all the same, on its other backends, and says so.

Environment:
    ANL_KERNELS_BUILD=0        build no extension; =1: an extension that fails is an error
    ANL_KERNELS_SANITIZE=1     with AddressSanitizer and UBSan (see `make sanitize`)
    MAX_JOBS=n                 compile n files at a time
"""

from __future__ import annotations

import os
import platform
import sys

from setuptools import Extension, setup

WANTED = os.environ.get("ANL_KERNELS_BUILD", "auto")
SANITIZE = os.environ.get("ANL_KERNELS_SANITIZE") == "1"

# Flags of each instruction set that kernels are compiled for; the best that the processor has is
# loaded (anl_kernels/backends/cpu/library.py). Each is a library of its own, so that no function
# compiled for one can be linked into another.
INSTRUCTION_SETS = {"default": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"),
        "-mprefer-vector-width=512",
    ]

SANITIZERS = (
    ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    if SANITIZE
    else []
)
# Not -ffast-math, which would drop infinities and NaNs.
# What is fused into one operation keeps its digits, which -O1 alone does not do.
OPTIMISE = ["-O1", "-fexpensive-optimizations", "-g"] if SANITIZE else ["-O3", "-g0"]


def cpu_extensions() -> list[Extension]:
    """The CPU backend: its operators, and its kernels once for each instruction set."""
    from torch.utils.cpp_extension import CppExtension

    common = ["-std=c++20", "-fvisibility=hidden", *OPTIMISE, *SANITIZERS]
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    operators = CppExtension(
        "anl_kernels._cpu",
        [f"csrc/cpu/{name}.cpp" for name in ("ops", "buffers", "module")],
        extra_compile_args=[*common, *openmp],
        extra_link_args=[*openmp, *SANITIZERS],
    )
    kernels = [
        Extension(
            f"anl_kernels._cpu_{name}",
            [f"csrc/cpu/kernels_{name}.cpp"],
            extra_compile_args=[*common, *flags, "-Wno-maybe-uninitialized"],
            extra_link_args=SANITIZERS,
            language="c++",
        )
        for name, flags in INSTRUCTION_SETS.items()
    ]
    return [operators, *kernels]


def build_command() -> type:
    """PyTorch's build_ext; a failure is told, and is no error unless the extension was demanded."""
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                if WANTED == "1":
                    raise
                say(f"the C++ extension did not build, the package goes on without it: {error}")
                for extension in self.extensions:
                    extension.optional = True
                self.extensions.clear()

    return Build


def say(message: str) -> None:
    """Tell whoever builds; pip shows it with -v."""
    print(f"anl_kernels: {message}", file=sys.stderr)


def extensions() -> dict[str, object]:
    """Arguments of ``setup``: what can be built here."""
    if WANTED == "0":
        say("ANL_KERNELS_BUILD=0: no C++ extension")
        return {}
    if sys.platform == "win32":
        say("the CPU kernels use the vector types of GCC and Clang: not built on Windows")
        return {}
    try:
        import torch
    except ImportError:
        if WANTED == "1":
            raise
        say("no torch to build with, no C++ extension; see pip install --no-build-isolation")
        return {}
    names = ", ".join(INSTRUCTION_SETS)
    say(f"building the CPU kernels for {names} with torch {torch.__version__}")
    return {"ext_modules": cpu_extensions(), "cmdclass": {"build_ext": build_command()}}


setup(**extensions())
