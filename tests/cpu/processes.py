"""Scripts of the tests in a Python of their own, with the package that the tests import."""

import os
import subprocess
import sys
from pathlib import Path

import anl_kernels

ROOT = Path(__file__).parents[2]
PACKAGE = Path(anl_kernels.__file__).parents[1]


def run_script(code, **environment):
    """What ``code`` prints; an error in it is an error of the test."""
    paths = [str(PACKAGE), str(ROOT), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path = [path for path in sys.path if path]\n{code}",
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout
