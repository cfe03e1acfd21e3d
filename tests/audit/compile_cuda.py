"""Compiles the CUDA kernels for every target and reads what they take: no GPU needed.

Reports, for each kernel and storage type, registers, bytes spilled, static shared memory, and how
many bytes its widest loads and stores move, and what a class costs in the loops of kept rows, out
of the disassembly. Kernels whose launch asks for dynamic shared memory show it in plan.h.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.audit import loops
from tests.audit.loops import LOOPS, UNCLAMPED, sweeps

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
TARGETS = ("sm_80", "sm_90a", "sm_100a", "sm_120")
FLAGS = ["-std=c++20", "-O3", "-cubin", "-Xptxas", "-v"]
CACHE = ROOT / "build" / "audit"
LOOPS_OF = {"cluster_row kept none": UNCLAMPED, "cluster_row kept line": LOOPS}
"""Kernels whose loops are told apart: the others choose among functors inside of theirs."""
SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
TYPES = {"d": "float64", "f": "float32", "8BFloat16": "bfloat16", "7Float16": "float16"}


def why_not() -> str | None:
    """The reason that nothing can be compiled here, or None."""
    if shutil.which("nvcc") is None:
        return "there is no nvcc"
    if disassembler() is None:
        return "there is no cuobjdump, neither CUDA's nor Triton's"
    return None


def disassembler() -> str | None:
    """cuobjdump, which a bare nvcc lacks and Triton's package carries."""
    try:
        import triton
    except ImportError:
        return shutil.which("cuobjdump")
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(path) if path.exists() else shutil.which("cuobjdump")


def nvcc_version() -> str:
    """The release of the compiler, such as "13.0"."""
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release ([\d.]+)", text)
    assert found, text
    return found[1]


def report(target: str) -> dict[str, dict[str, Any]]:
    """What every kernel takes on one target, by "kernel type"."""
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"{target}.json"
    with _lock(CACHE / f"{target}.lock"):
        key = _state()
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["key"] == key:
                return kept["kernels"]
        kernels: dict[str, dict[str, Any]] = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for found in pool.map(lambda source: _audit(source, target), SOURCES):
                kernels |= found
        path.write_text(json.dumps({"key": key, "kernels": kernels}))
    return kernels


@contextmanager
def _lock(path: Path) -> Any:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _state() -> str:
    """A hash of all that the report depends on."""
    files = sorted([*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc" / "cuda").iterdir()])
    digest = hashlib.sha256(" ".join([*FLAGS, nvcc_version()]).encode())
    for file in [*files, Path(__file__), Path(loops.__file__)]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _audit(source: Path, target: str) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernels.cubin"
        # As setup.py compiles for it; the suffix a needs the long form.
        arch = f"-gencode=arch=compute_{target[3:]},code={target}"
        command = ["nvcc", *FLAGS, arch, "-o", str(cubin), str(source)]
        compiled = subprocess.run(command, capture_output=True, text=True)
        assert compiled.returncode == 0, compiled.stderr
        sass = subprocess.run(
            [str(disassembler()), "-sass", str(cubin)], capture_output=True, text=True, check=True
        ).stdout
    kernels = _resources(compiled.stderr)
    for name, text in _functions(sass).items():
        kernels[name] |= _accesses(text)
        kernel, _, dtype = name.rpartition(" ")
        if kernel in LOOPS_OF:
            kernels[name]["loops"] = sweeps(text, SIZES[dtype], LOOPS_OF[kernel])
    return kernels


_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\S+)'.*?"
    r"Function properties for (?P=name)\s+"
    r"\d+ bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\s"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def _resources(log: str) -> dict[str, dict[str, Any]]:
    kernels: dict[str, dict[str, Any]] = {}
    for found in _ENTRY.finditer(log):
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        kernels[_plain(found["name"])] = {
            "registers": int(found["registers"]),
            "spilled": int(found["stores"]) + int(found["loads"]),
            "shared": int(shared[1]) if shared else 0,
        }
    return kernels


_NAME = re.compile(
    r"\d+(?P<kernel>[a-z_]+)_kernelI(?:NS\w_)?(?P<type>d|f|8BFloat16|7Float16)E?"
    r"(?:Lb(?P<kept>[01])E)?(?:LN\w*?5DenseE(?P<dense>\d)E)?"
)


def _plain(mangled: str) -> str:
    """ "kernel type", and what else a kernel is made for, of a mangled name."""
    found = _NAME.search(mangled)
    assert found, mangled
    kept = {"1": "kept", "0": "streamed", None: ""}[found["kept"]]
    dense = {"0": "none", "1": "line", "2": "", None: ""}[found["dense"]]
    return " ".join(filter(None, [found["kernel"], kept, dense, TYPES[found["type"]]]))


def _functions(sass: str) -> dict[str, str]:
    parts = re.split(r"Function : (\S+)\n", sass)[1:]
    named = zip(parts[::2], parts[1::2], strict=True)
    return {_plain(name): text for name, text in named if "_kernelI" in name}


def _accesses(sass: str) -> dict[str, int]:
    """Bytes of the widest access of each kind."""
    return {
        "load_bytes": _widest(r"\bLDG(\.\S+)?", sass),
        "store_bytes": _widest(r"\bSTG(\.\S+)?", sass),
        "shared_load_bytes": _widest(r"\bLDS(\.\S+)?", sass),
        "copy_bytes": _widest(r"\bLDGSTS(\.\S+)?", sass),
    }


def _widest(pattern: str, sass: str) -> int:
    def size(suffixes: str) -> int:
        for word, number in ((".128", 16), (".64", 8), (".U16", 2), (".U8", 1), (".S8", 1)):
            if word in suffixes:
                return number
        return 4

    found = {match or "" for match in re.findall(pattern + r"\s", sass)}
    return max((size(suffixes) for suffixes in found), default=0)
