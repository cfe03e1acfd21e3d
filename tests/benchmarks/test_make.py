"""``make gpu`` where there is no GPU: its stages, and what becomes of one that fails."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from benchmarks.environment import ROOT

pytestmark = pytest.mark.skipif(
    not shutil.which("make") or not shutil.which("timeout"), reason="needs GNU make and coreutils"
)


def make(*arguments):
    # Under `make gpu` itself, not with what was asked of that.
    others = ("MAKE", "MFLAGS", "GPU_", "COMPUTE_SANITIZER", "PYTEST_ARGS")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(others)}
    return subprocess.run(
        ["make", *arguments, "SYSTEM_PACKAGES=1"],
        cwd=ROOT, capture_output=True, text=True, env=environment,
    )  # fmt: skip


def program(path, log, fails_on):
    """A program that writes down its arguments and fails on some."""
    path.write_text(f'#!/bin/sh\necho "$@" >> {log}\ncase "$*" in {fails_on}) exit 3;; esac\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def stages(tmp_path):
    """Runs make gpu with a Python and a sanitizer that do nothing: (its result, their calls)."""

    def run(*arguments, fails_on="nothing"):
        log = tmp_path / "log"
        log.write_text("")
        python = program(tmp_path / "python", log, fails_on)
        tool = program(tmp_path / "tool", log, fails_on)
        done = make("gpu", f"PYTHON={python}", f"COMPUTE_SANITIZER={tool}", *arguments)
        return done, log.read_text()

    return run


def test_a_dry_run_has_every_stage():
    done = make("-n", "gpu", f"PYTHON={sys.executable}")
    assert done.returncode == 0
    for part in (
        "setup.py -q build_ext --inplace",
        "-m pytest",
        "for tool in memcheck racecheck",
        "-m tests.gpu.sanitize",
        "-m benchmarks --device cuda --targets",
        '--out "benchmarks/results/{device}"',
    ):
        assert part in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    done = make("gpu", f"PYTHON={sys.executable}")
    assert done.returncode != 0
    assert "no GPU is visible to PyTorch" in done.stderr
    assert "gpu-build" not in done.stdout


def test_all_stages_run(stages):
    done, calls = stages("PYTEST_ARGS=-k some", "GPU_BENCH_ARGS=--quick", "GPU_RESULTS=a/b")
    assert done.returncode == 0, done.stderr
    assert "setup.py -q build_ext --inplace" in calls
    assert "-m pytest -k some" in calls
    assert "--tool memcheck" in calls
    assert "--tool racecheck" in calls
    assert "--out a/b --quick" in calls
    assert "gpu-bench: 0 s" in done.stdout


@pytest.mark.parametrize(
    ("fails_on", "stage"),
    [("*build_ext*", "build"), ("*'-m pytest'*", "test"), ("*race*", "sanitize")],
)
def test_a_stage_that_fails_does_not_stop_the_later_ones(fails_on, stage, stages):
    done, calls = stages(fails_on=fails_on)
    assert done.returncode != 0
    assert f"make gpu: failed: gpu-{stage}" in done.stderr
    assert "-m benchmarks --device cuda" in calls


def test_some_stages_alone(stages):
    done, calls = stages("GPU_STAGES=sanitize")
    assert done.returncode == 0
    assert "--tool racecheck" in calls
    assert "-m pytest" not in calls
    assert "-m benchmarks" not in calls


def test_without_the_tool_the_stage_is_skipped(stages):
    done, _ = stages("GPU_STAGES=sanitize", "COMPUTE_SANITIZER=no-such-tool")
    assert done.returncode == 0
    assert "gpu-sanitize: skipped, there is no no-such-tool" in done.stdout
