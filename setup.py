"""Build script: the metadata lives in pyproject.toml, the C++ and CUDA extensions here.

They need a compiler, and the torch that will run them: pip's build isolation hides it, so it is
looked for in the environment that pip installs into. The CUDA kernels need a torch with CUDA, and
nvcc. Without any of them the package installs and works all the same, on its other backends, and
says so.

Environment:
    ANL_KERNELS_BUILD=0        build no extension; =1: an extension that fails is an error
    FORCE_CUDA=1               without the CUDA kernels it is an error; =0: do not build them
    TORCH_CUDA_ARCH_LIST=...   compute capabilities to build them for, such as "9.0" or "8.0;9.0"
    CUDA_HOME=...              where CUDA is, if nvcc in the PATH does not tell
    ANL_KERNELS_SANITIZE=1     with AddressSanitizer and UBSan (see `make sanitize`)
    MAX_JOBS=n                 compile n files at a time
"""

from __future__ import annotations

import copy
import importlib
import os
import platform
import re
import shutil
import site
import subprocess
import sys
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from setuptools import Extension, setup

if TYPE_CHECKING:
    from types import ModuleType

WANTED = os.environ.get("ANL_KERNELS_BUILD", "auto")
FORCE_CUDA = os.environ.get("FORCE_CUDA", "auto")
SANITIZE = os.environ.get("ANL_KERNELS_SANITIZE") == "1"
WINDOWS = sys.platform == "win32"

# Flags of each instruction set that kernels are compiled for; the best that the processor has is
# loaded (anl_kernels/backends/choice.py). Each is a library of its own, so that no function
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
            extra_compile_args=[*common, *flags, "-Wno-maybe-uninitialized", "-Wno-uninitialized"],
            extra_link_args=SANITIZERS,
            language="c++",
        )
        for name, flags in INSTRUCTION_SETS.items()
    ]
    return [operators, *kernels]


# Each runs on all later GPUs of its generation; from 9.0 on they have clusters. One is there as PTX
# too, which drivers compile for whatever else comes later.
ARCHITECTURES = ("8.0", "9.0+PTX")
ARCHITECTURES_WITH_BLACKWELL = ("8.0", "9.0", "10.0+PTX", "12.0")
NVCC_OF_BLACKWELL = (12, 8)  # the first that knows 10.0 and 12.0
# The first that lets a kernel have more than 4 KiB of parameters, as those of float64 have.
OLDEST_NVCC = (12, 1)


class Nvcc(NamedTuple):
    """The CUDA compiler."""

    home: Path
    release: tuple[int, int]

    def __str__(self) -> str:
        return "nvcc {}.{}".format(*self.release)

    def architectures(self) -> str:
        """What to compile for, as torch reads it; never what GPU happens to be in this machine."""
        asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";")
        new = self.release >= NVCC_OF_BLACKWELL
        return asked or ";".join(ARCHITECTURES_WITH_BLACKWELL if new else ARCHITECTURES)


def ask_for_home() -> None:
    """Set CUDA_HOME to where nvcc says it is: what is in the PATH may be a script that calls it."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    dry = [nvcc, "--dryrun", "-x", "cu", "-E", os.devnull]
    told = subprocess.run(dry, capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.*)", told, re.MULTILINE)
    if top:
        os.environ["CUDA_HOME"] = str(Path(top[1].strip()).resolve())


def find_nvcc() -> Nvcc | None:
    """The nvcc that torch would call."""
    ask_for_home()
    from torch.utils.cpp_extension import CUDA_HOME

    home = Path(CUDA_HOME or "nowhere")
    try:
        told = subprocess.check_output([home / "bin" / "nvcc", "--version"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    release = re.search(r"release (\d+)\.(\d+)", told)
    return Nvcc(home, (int(release[1]), int(release[2]))) if release else None


def why_no_cuda(torch: ModuleType, nvcc: Nvcc | None) -> str | None:
    """What hinders the CUDA kernels, if anything does. Whether there is a GPU does not matter."""
    if FORCE_CUDA == "0":
        return "FORCE_CUDA=0"
    if SANITIZE:
        return "ANL_KERNELS_SANITIZE=1 is for the CPU's"
    if torch.version.hip:
        return f"torch {torch.__version__} is for ROCm"
    if not torch.version.cuda:
        return f"torch {torch.__version__} is without CUDA"
    if nvcc is None:
        return "nvcc is not found (set CUDA_HOME, or add it to the PATH)"
    if not (nvcc.home / "include" / "cuda_runtime_api.h").exists():
        return f"{nvcc.home} has no include/cuda_runtime_api.h (set CUDA_HOME to where CUDA is)"
    if nvcc.release[0] != int(torch.version.cuda.partition(".")[0]):
        return f"{nvcc} does not go with torch {torch.__version__}, of CUDA {torch.version.cuda}"
    if nvcc.release < OLDEST_NVCC:
        return f"{nvcc} is too old, 12.1 is the first that will do"
    return None


def cuda_extension(architectures: str) -> Extension:
    """The CUDA backend: its operators, and its kernels, which include no header of torch's."""
    from torch.utils.cpp_extension import CUDAExtension

    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures  # torch makes flags of it
    host = ["/std:c++20", "/O2"] if WINDOWS else ["-std=c++20", "-fvisibility=hidden", *OPTIMISE]
    # On Windows torch gives nvcc the standard, which it takes only once.
    device = [] if WINDOWS else ["-std=c++20", "-Xcompiler", "-fvisibility=hidden"]
    return CUDAExtension(
        "anl_kernels._cuda",
        ["csrc/cuda/ops.cpp", "csrc/cuda/module.cpp", *sorted(glob("csrc/cuda/*.cu"))],
        extra_compile_args={
            "cxx": [*host, f"-DANL_CUDA_ARCHITECTURES={architectures}"],
            "nvcc": [*device, "-O3"],
        },
    )


class Part(NamedTuple):
    """Extensions that are built together, or not at all."""

    name: str
    extensions: list[Extension]
    demanded: bool
    without: str
    """What to set to do without them."""


def build_command(parts: list[Part]) -> type:
    """PyTorch's build_ext; a part's failure is told, and is an error only if it was demanded."""
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            extensions, compiler = self.extensions, self.compiler
            built = [part for part in parts if self.built(part, copy.copy(compiler))]
            extensions[:] = [extension for part in built for extension in part.extensions]
            self.extensions = extensions

        def built(self, part: Part, compiler: object) -> bool:
            # torch hooks itself into the compiler it is given: each part has its own.
            self.extensions, self.compiler = list(part.extensions), compiler
            try:
                super().build_extensions()
            except Exception as error:
                if part.demanded:
                    message = f"{part.name} did not build ({part.without} leaves them out): {error}"
                    raise RuntimeError(f"anl_kernels: {message}") from error
                say(f"{part.name} did not build, the package goes on without them: {error}")
                return False
            return True

    return Build


def say(message: str) -> None:
    """Tell whoever builds; pip shows it with -v."""
    print(f"anl_kernels: {message}", file=sys.stderr)


def parts_with(torch: ModuleType) -> list[Part]:
    """What can be built here; says so, and what not, in one line."""
    parts, without, said = [], [], []
    nvcc = find_nvcc() if torch.version.cuda else None  # before torch looks for it
    if WINDOWS:
        without.append("the CPU kernels: they use the vector types of GCC and Clang")
    else:
        parts.append(
            Part("the CPU kernels", cpu_extensions(), WANTED == "1", "ANL_KERNELS_BUILD=0")
        )
        said.append(f"the CPU kernels for {', '.join(INSTRUCTION_SETS)}")
    reason = why_no_cuda(torch, nvcc)
    if reason and FORCE_CUDA == "1":
        sys.exit(f"anl_kernels: FORCE_CUDA=1, but the CUDA kernels cannot be built: {reason}")
    if reason or nvcc is None:
        without.append(f"the CUDA kernels: {reason}")
    else:
        architectures = nvcc.architectures()
        demanded = "1" in (WANTED, FORCE_CUDA)
        extensions = [cuda_extension(architectures)]
        parts.append(Part("the CUDA kernels", extensions, demanded, "FORCE_CUDA=0"))
        said.append(f"the CUDA kernels for {architectures} with {nvcc}")
    building = f"building {' and '.join(said)} with torch {torch.__version__}" if said else ""
    say("; ".join(filter(None, [building, *(f"not {reason}" for reason in without)])))
    return parts


OLDEST_TORCH = (2, 11)  # as in pyproject.toml


def find_torch() -> ModuleType:
    """The torch to build with: one that can be imported, or that of the environment behind.

    pip builds in isolation with the target's interpreter, but hides its packages. Other front ends
    (``python -m build``, uv) make an environment for the build, behind which there is none.

    Raises:
        ImportError: there is no torch, or one that will be replaced.
    """
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
    folders = site.getsitepackages()
    if sys.prefix == sys.base_prefix:  # in a virtual environment a user's packages are not seen
        folders.append(site.getusersitepackages())
    for folder in folders:
        if Path(folder, "torch", "__init__.py").exists():
            sys.path.append(folder)  # last: setuptools is that of the build
            torch = importlib.import_module("torch")
            if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
                raise ImportError(f"torch {torch.__version__} is too old, and will be replaced")
            say(f"building in isolation, with the torch in {folder}")
            return torch
    raise ImportError(f"there is none in {', '.join(folders)}")


NO_TORCH = (
    "no torch to build with ({error}): first pip install 'torch>=2.11' in the environment that is "
    "to run it, then pip install this, with --no-build-isolation if the front end is not pip"
)


def arguments() -> dict[str, object]:
    """Arguments of ``setup``."""
    if WANTED == "0" and FORCE_CUDA == "1":
        sys.exit("anl_kernels: ANL_KERNELS_BUILD=0 and FORCE_CUDA=1 contradict each other")
    if WANTED == "0":
        say("ANL_KERNELS_BUILD=0: no extension")
        return {}
    try:
        torch = find_torch()
    except ImportError as error:
        missing = NO_TORCH.format(error=error)
        if "1" in (WANTED, FORCE_CUDA):
            sys.exit(f"anl_kernels: {missing}")
        say(f"no extension, there is {missing}")
        return {}
    parts = parts_with(torch)
    if not parts:
        return {}
    extensions = [extension for part in parts for extension in part.extensions]
    return {"ext_modules": extensions, "cmdclass": {"build_ext": build_command(parts)}}


setup(**arguments())
