import os
import re
import subprocess
import sys

import pytest

from benchmarks.environment import ROOT

pytest.importorskip("pytest_benchmark")


def micro(*arguments):
    """The micro benchmarks, each once, on tiny inputs."""
    sizes = "--benchmark-disable", "--shapes=3x10,2x300"
    command = sys.executable, "-m", "pytest", "benchmarks/micro", "-q", *sizes, *arguments
    # Neither this session's options nor its place among workers.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def test_micro_benchmarks_run():
    done = micro("-p", "no:xdist", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    passed = re.search(r"^(\d+) passed", done.stdout, re.M)
    assert passed, done.stdout
    # The library on a backend at least, and its peers: each on two shapes in two dtypes.
    assert int(passed[1]) >= 2 * 2 * (5 + 4)
