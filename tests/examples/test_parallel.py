"""The example of losses over processes compares itself with one process."""

import os
import subprocess
import sys

import pytest
import torch

from tests.examples.running import ROOT

NAMES = "DDP", "FSDP2", "DTensor logits", "its DTensor weight", "ak.ClassShards", "FSDP2 x classes"


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="NCCL wants a GPU for each process")
def test_every_mode_with_two_processes():
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", str(ROOT / "examples" / "parallel.py")]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(NAMES)
    for name, line in zip(NAMES, lines, strict=True):
        assert line.startswith(name)
        assert "the same" in line


def test_what_differs_is_seen(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from parallel import ROUNDING, difference

    grads = {"a": torch.ones(3, dtype=torch.float64), "b": torch.eye(2, dtype=torch.float64)}
    losses = [2.0, 1.0]
    assert difference((losses, grads), (losses, grads)) == 0
    other = grads | {"b": grads["b"] * (1 + 1e-6)}
    assert difference((losses, other), (losses, grads)) > ROUNDING
    assert difference(([2.0, 1.1], grads), (losses, grads)) > ROUNDING
    assert not difference(([2.0, float("nan")], grads), (losses, grads)) < ROUNDING
