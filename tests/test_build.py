"""What setup.py builds: run on a torch that only says what it is, and compiles nothing."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
CPU, CUDA = "anl_kernels._cpu", "anl_kernels._cuda"
KERNELS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/cuda/*.cu"))

TORCH = """
from types import SimpleNamespace
__version__ = "2.13.0+stub"
version = SimpleNamespace(cuda={cuda!r}, hip={hip!r})
"""

# Every extension that is built is printed, with what a compiler would be told.
CPP_EXTENSION = """
import json, os
from setuptools import Extension
from setuptools.command.build_ext import build_ext

CUDA_HOME = os.environ.get("CUDA_HOME", {home!r})

def CppExtension(name, sources, **options):
    extension = Extension(name, sources)
    extension.told = options
    return extension

CUDAExtension = CppExtension

class BuildExtension(build_ext):
    def build_extensions(self):
        assert not hasattr(self.compiler, "hooked")
        self.compiler.hooked = True
        for extension in self.extensions:
            if extension.name in {fails!r}:
                raise RuntimeError("the compiler has crashed")
            facts = {{
                "name": extension.name,
                "sources": extension.sources,
                "flags": getattr(extension, "told", {{}}).get("extra_compile_args"),
                "architectures": os.environ.get("TORCH_CUDA_ARCH_LIST"),
            }}
            print("BUILT", json.dumps(facts))

    def run(self):
        super().run()
        print("KEPT", json.dumps([extension.name for extension in self.extensions]))
"""

NVCC = """#!/bin/sh
echo "Cuda compilation tools, release {release}, V{release}.88"
echo '#$ TOP={home}/bin/..' >&2
"""

RUN = """
import runpy, sys
import setuptools.command.build_ext
sys.platform = {platform!r}
sys.argv = ["setup.py", "-q", "build_ext", "--build-lib", {folder!r}, "--build-temp", {folder!r}]
runpy.run_path("setup.py", run_name="__main__")
"""


class Outcome(NamedTuple):
    """What a run of setup.py said, and built."""

    failed: bool
    said: str
    built: dict
    kept: list

    def told(self):
        """The line that says what is built."""
        (line,) = [line for line in self.said.splitlines() if "anl_kernels: " in line]
        return line


@pytest.fixture
def build(tmp_path):
    """Runs setup.py; by default with a torch for CUDA 13 and the nvcc for it, and without a GPU."""

    def run(torch=TORCH, cuda="13.0", hip=None, nvcc="13.0", header=True, fails=(), **others):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        home = make_cuda(folder / "cuda", nvcc, header) if nvcc else None
        make_torch(folder / "torch", torch.format(cuda=cuda, hip=hip), home, fails)
        code = RUN.format(platform=others.pop("platform", "linux"), folder=str(folder / "build"))
        ours = ("ANL_", "FORCE_CUDA", "TORCH_", "CUDA_", "MAX_JOBS")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        inherited["PATH"] = without_nvcc(inherited["PATH"])
        return outcome_of(code, {**inherited, "PYTHONPATH": str(folder), **others})

    return run


def without_nvcc(path):
    folders = path.split(os.pathsep)
    return os.pathsep.join(f for f in folders if not Path(f, "nvcc").exists())


def make_cuda(home, release, header):
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(NVCC.format(release=release, home=home))
    nvcc.chmod(0o755)
    (home / "include").mkdir()
    if header:
        (home / "include" / "cuda_runtime_api.h").touch()
    return str(home)


def make_torch(package, text, home, fails):
    (package / "utils").mkdir(parents=True)
    (package / "__init__.py").write_text(text)
    (package / "utils" / "__init__.py").touch()
    text = CPP_EXTENSION.format(home=home, fails=tuple(fails))
    (package / "utils" / "cpp_extension.py").write_text(text)


def outcome_of(code, environment):
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    lines = [line.partition(" ") for line in result.stdout.splitlines()]
    built = [json.loads(rest) for word, _, rest in lines if word == "BUILT"]
    kept = [json.loads(rest) for word, _, rest in lines if word == "KEPT"]
    by_name = {facts["name"]: facts for facts in built}
    return Outcome(result.returncode != 0, result.stderr, by_name, kept[0] if kept else [])


def test_the_cuda_kernels_are_built_where_they_can_be(build):
    outcome = build()
    assert not outcome.failed
    assert {CPU, CUDA} <= set(outcome.built)
    assert outcome.kept == list(outcome.built)
    told = outcome.told()
    assert "building the CPU kernels for default" in told
    assert (
        "the CUDA kernels for 8.0;9.0;10.0+PTX;12.0 with nvcc 13.0 with torch 2.13.0+stub" in told
    )
    assert "not " not in told


def test_what_the_compilers_are_told(build):
    extension = build().built[CUDA]
    assert extension["sources"] == ["csrc/cuda/ops.cpp", "csrc/cuda/module.cpp", *KERNELS]
    assert extension["architectures"] == "8.0;9.0;10.0+PTX;12.0"
    host, device = extension["flags"]["cxx"], extension["flags"]["nvcc"]
    assert "-DANL_CUDA_ARCHITECTURES=8.0;9.0;10.0+PTX;12.0" in host
    assert "-std=c++20" in host
    assert "-std=c++20" in device
    assert not [flag for flag in device if "fast" in flag or "arch" in flag]


def test_where_cuda_is_if_a_script_stands_for_nvcc(build, tmp_path):
    home = make_cuda(tmp_path / "cuda", "13.0", header=True)
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
    script.chmod(0o755)
    outcome = build(nvcc=None, PATH=f"{script.parent}:{os.environ['PATH']}")
    assert CUDA in outcome.built


def test_the_two_backends_share_no_source(build):
    built = build().built
    sources = [source for extension in built.values() for source in extension["sources"]]
    assert len(sources) == len(set(sources))


def test_kernels_know_no_pytorch():
    for path in [*ROOT.glob("csrc/cuda/*.cu"), ROOT / "csrc/call.h", *ROOT.glob("csrc/cuda/*.h")]:
        text = path.read_text()
        mentions_tensors = path.name in ("ops.h", "place.h")
        assert mentions_tensors or not any(name in text for name in ("<torch/", "<ATen/", "<c10/"))


HINDRANCES = {
    "cpu-torch": ({"cuda": None}, ["torch 2.13.0+stub is without CUDA"]),
    "rocm-torch": ({"cuda": None, "hip": "7.0"}, ["torch 2.13.0+stub is for ROCm"]),
    "no-nvcc": ({"nvcc": None}, ["nvcc is not found", "CUDA_HOME"]),
    "no-headers": ({"header": False}, ["no include/cuda_runtime_api.h", "CUDA_HOME"]),
    "other-cuda": ({"nvcc": "12.8"}, ["nvcc 12.8", "CUDA 13.0"]),
    "old-cuda": ({"cuda": "12.6", "nvcc": "12.0"}, ["nvcc 12.0 is too old", "12.1"]),
    "sanitizers": ({"ANL_KERNELS_SANITIZE": "1"}, ["ANL_KERNELS_SANITIZE=1"]),
}


@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_without_cuda_the_cpu_kernels_are_built(hindrance, build):
    options, facts = HINDRANCES[hindrance]
    outcome = build(**options)
    assert not outcome.failed
    assert CPU in outcome.built
    assert CUDA not in outcome.built
    for fact in ("building the CPU kernels for default", "; not the CUDA kernels: ", *facts):
        assert fact in outcome.told()


@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_forced_without_cuda_is_an_error(hindrance, build):
    options, facts = HINDRANCES[hindrance]
    outcome = build(**options, FORCE_CUDA="1")
    assert outcome.failed
    assert not outcome.built
    for fact in ("FORCE_CUDA=1, but the CUDA kernels cannot be built: ", *facts):
        assert fact in outcome.told()


def test_not_wanted(build):
    outcome = build(FORCE_CUDA="0")
    assert CUDA not in outcome.built
    assert "not the CUDA kernels: FORCE_CUDA=0" in outcome.told()
    outcome = build(ANL_KERNELS_BUILD="0")
    assert not outcome.failed
    assert not outcome.built
    outcome = build(ANL_KERNELS_BUILD="0", FORCE_CUDA="1")
    assert outcome.failed
    assert "contradict" in outcome.told()


@pytest.mark.parametrize(
    ("asked", "release", "architectures"),
    [
        ("9.0", "13.0", "9.0"),
        ("8.6 9.0+PTX", "13.0", "8.6;9.0+PTX"),
        ("", "13.0", "8.0;9.0;10.0+PTX;12.0"),
        ("", "12.8", "8.0;9.0;10.0+PTX;12.0"),
        ("", "12.6", "8.0;9.0+PTX"),
    ],
)
def test_architectures(asked, release, architectures, build):
    outcome = build(cuda=release, nvcc=release, TORCH_CUDA_ARCH_LIST=asked)
    extension = outcome.built[CUDA]
    assert extension["architectures"] == architectures
    assert f"-DANL_CUDA_ARCHITECTURES={architectures}" in extension["flags"]["cxx"]
    assert f"the CUDA kernels for {architectures} with nvcc {release}" in outcome.told()


@pytest.mark.parametrize(("broken", "left"), [(CUDA, CPU), (CPU, CUDA)])
def test_what_fails_does_not_cost_the_other(broken, left, build):
    outcome = build(fails=[broken])
    assert not outcome.failed
    assert left in outcome.kept
    assert broken not in outcome.kept
    part = "CUDA" if broken == CUDA else "CPU"
    assert f"the {part} kernels did not build, the package goes on without them" in outcome.said
    assert "the compiler has crashed" in outcome.said


@pytest.mark.parametrize(
    ("broken", "variables"),
    [
        (CUDA, {"FORCE_CUDA": "1"}),
        (CUDA, {"ANL_KERNELS_BUILD": "1"}),
        (CPU, {"ANL_KERNELS_BUILD": "1"}),
    ],
)
def test_what_is_demanded_may_not_fail(broken, variables, build):
    outcome = build(fails=[broken], **variables)
    assert outcome.failed
    way_out = "FORCE_CUDA=0" if broken == CUDA else "ANL_KERNELS_BUILD=0"
    assert f"did not build ({way_out} leaves them out): the compiler has crashed" in outcome.said


def test_on_windows_there_are_the_cuda_kernels_only(build):
    outcome = build(platform="win32")
    assert list(outcome.built) == [CUDA]
    flags = outcome.built[CUDA]["flags"]
    assert "/std:c++20" in flags["cxx"]
    assert not [flag for flag in flags["nvcc"] if "std" in flag]
    assert "not the CPU kernels: they use the vector types" in outcome.told()
    outcome = build(platform="win32", cuda=None)
    assert not outcome.failed
    assert not outcome.built


@pytest.mark.parametrize("demand", ["ANL_KERNELS_BUILD", "FORCE_CUDA", None])
def test_without_torch(demand, build):
    outcome = build(torch="raise ImportError('no torch here')", **({demand: "1"} if demand else {}))
    assert outcome.failed == bool(demand)
    assert not outcome.built
    assert "no torch to build with (no torch here)" in outcome.said
    assert "pip install 'torch>=2.11'" in outcome.said
    assert "Traceback" not in outcome.said


# What pip's isolation does to the interpreter: the environment's packages are not in its path.
ISOLATED = """
import site, sys, sysconfig
site.getsitepackages = lambda: [{folder!r}]
hidden = set(map(sysconfig.get_path, ("purelib", "platlib")))
import setuptools, setuptools.command.build_ext
sys.path = [p for p in sys.path if p not in hidden and p != {folder!r}]
for name in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
    del sys.modules[name]
"""


@pytest.mark.parametrize("version", ["2.13.0+stub", "2.10.1"])
def test_in_isolation_the_torch_of_the_environment_is_found(version, build, tmp_path):
    folder = tmp_path / "site-packages"
    text = TORCH.format(cuda=None, hip=None).replace("2.13.0+stub", version)
    make_torch(folder / "torch", text, None, ())
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ANL_", "FORCE_"))}
    run = RUN.format(platform="linux", folder=str(tmp_path / "build"))
    outcome = outcome_of(
        ISOLATED.format(folder=str(folder)) + run, {**environment, "PYTHONPATH": ""}
    )
    assert not outcome.failed, outcome.said
    if version == "2.10.1":
        assert not outcome.built
        assert "torch 2.10.1 is too old, and will be replaced" in outcome.said
    else:
        assert CPU in outcome.built
        assert f"building in isolation, with the torch in {folder}" in outcome.said
