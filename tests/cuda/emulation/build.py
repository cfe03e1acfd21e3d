"""Builds Python modules of CUDA kernels for the host, with the emulation in place of a device.

What is built stays in ``build/emulation``; only sources whose text, headers or flags have changed
are compiled again. Processes may build at the same time.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
FOLDER = ROOT / "build" / "emulation"
EMULATION = [HERE / name for name in ("fibre.cpp", "machine.cpp", "shared.cpp")]
CONTROL = HERE / "control.cpp"
COMPILER = os.environ.get("CXX", "g++")
HEADER = HERE / "device_emulated.h"
# Two modules in a process must not share what is inline in both: hence the flags on symbols.
FLAGS = [
    *("-std=c++20", "-fPIC", "-O1", "-g0", "-fvisibility=hidden", "-fno-gnu-unique"),
    f'-DANL_EMULATED_DEVICE="{HEADER}"',
]


def why_not():
    """Why nothing can be built here; None if it can."""
    if sys.platform != "linux":
        return "the emulation is for Linux"
    if shutil.which(COMPILER) is None:
        return f"no compiler ({COMPILER})"
    return None


def load(name, sources, *, folder=None, with_torch=False, flags=()):
    """Build a module and import it; PYBIND11_MODULE must call it ``name``."""
    return _import(name, build(folder or name, sources, with_torch=with_torch, flags=flags))


def load_control(folder):
    """set_schedule and set_device of a module that has been built; see control.cpp."""
    return _import("emulation_control", FOLDER / folder / f"{folder}.so")


def _import(name, path):
    # pybind11 keeps modules by their full names: a library of another folder needs another.
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}.{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(name, sources, *, with_torch=False, flags=()):
    """The path of a shared library of these .cpp and .cu files, emulated.

    Args:
        name: A folder of its own for what is built.
        sources: Files; all are compiled as C++.
        with_torch: Whether they include PyTorch's headers. pybind11's are always there.
        flags: For the compiler, after those of every module.
    """
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    compile_flags = [*FLAGS, *_includes(), *(_torch_flags() if with_torch else []), *flags]
    with _lock(folder):
        # The emulation knows no PyTorch, and is so compiled once whatever a module needs.
        sources = [*map(Path, sources), CONTROL]
        jobs = [(folder, source.resolve(), compile_flags) for source in sources]
        jobs += [(folder, source, [*FLAGS, *flags]) for source in EMULATION]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda job: _compile(*job), jobs))
        return _link(folder / f"{name}.so", objects, _torch_libraries() if with_torch else [])


def _includes():
    # PyTorch has a pybind11 of its own.
    paths = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    return [word for path in paths for word in ("-isystem", path)]


def _torch_flags():
    return [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]


def _torch_libraries():
    paths = [f"-L{path}" for path in cpp_extension.library_paths()]
    return [*paths, "-lc10", "-ltorch", "-ltorch_cpu", "-ltorch_python"]


@contextmanager
def _lock(folder):
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(folder, source, flags):
    """The object file of a source and what it was made of."""
    target = folder / f"{_digest(str(source))[:8]}-{source.stem}.o"
    command = [COMPILER, *flags, "-x", "c++", "-MMD", "-c", str(source), "-o", str(target)]

    def made_of():
        return _digests(_dependencies(target.with_suffix(".d")))

    _make(target, command, made_of)
    return target


def _link(target, objects, libraries):
    command = [COMPILER, "-shared", *map(str, objects), *libraries, "-o"]
    # A process may have the old library open: it keeps it, and the new one takes its name.
    fresh = target.with_suffix(".new")
    _make(target, [*command, str(fresh)], lambda: _digests(objects), made=fresh)
    return target


def _make(target, command, made_of, made=None):
    """Run the command, unless the target is there and was made so, of what is there now."""
    record = target.with_suffix(target.suffix + ".json")
    if target.exists() and record.exists():
        then = json.loads(record.read_text())
        if then["command"] == _with_versions(command) and then["made_of"] == made_of():
            return
    record.unlink(missing_ok=True)
    started = time.time()
    _run(command)
    if made is not None:
        os.replace(made, target)
    facts = {"command": _with_versions(command), "made_of": made_of()}
    if all(os.path.getmtime(file) < started for file in facts["made_of"]):  # none edited meanwhile
        record.write_text(json.dumps(facts, indent=1))


def _run(command):
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[-8000:]}")


def _with_versions(command):
    # Headers of the system and of PyTorch are not looked at.
    return [*command, _compiler_version(), torch.__version__, sys.version]


@cache
def _compiler_version():
    return subprocess.run([COMPILER, "--version"], capture_output=True, text=True).stdout


def _dependencies(depfile):
    """The files that a rule of make names after its colon."""
    if not depfile.exists():
        return []
    return depfile.read_text().replace("\\\n", " ").partition(": ")[2].split()


def _digests(files):
    return {str(file): _digest(_bytes(file)) for file in files}


def _bytes(file):
    try:
        return Path(file).read_bytes()
    except FileNotFoundError:
        return b"missing"


def _digest(content):
    if isinstance(content, str):
        content = content.encode()
    return hashlib.sha256(content).hexdigest()
