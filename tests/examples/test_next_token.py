"""The demo runs to its end, in its quick form, and leaves what it says."""

import json

import pytest

from tests.examples.running import run_example

pytest.importorskip("matplotlib")
pytest.importorskip("rich")


def test_next_token_demo(tmp_path):
    run_example("next_token.py", "--quick", "--out", tmp_path)
    report = json.loads((tmp_path / "next_token.json").read_text())
    assert (tmp_path / "next_token.png").read_bytes().startswith(b"\x89PNG")
    assert set(report["training"]) == {"CE", "ANL-CE(5,5)", "GCE(0.7)", "RelativeGCE(0.7)"}
