"""The demo runs to its end, in its quick form, and leaves what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

ROOT = Path(__file__).parents[1]


def test_next_token_demo(tmp_path):
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(ROOT / "examples" / "next_token.py"), "--quick"]
    result = subprocess.run(
        [*command, "--out", str(tmp_path)], env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "next_token.json").read_text())
    assert (tmp_path / "next_token.png").read_bytes().startswith(b"\x89PNG")
    assert set(report["training"]) == {"CE", "ANL-CE(5,5)", "GCE(0.7)", "NCE+MAE(50,1)"}
