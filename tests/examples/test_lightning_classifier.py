"""The Lightning example runs in its quick form and learns something."""

import json

import pytest

from tests.examples.running import run_example

pytest.importorskip("lightning")
pytest.importorskip("sklearn")


def test_quick_run(tmp_path):
    run_example("lightning_classifier.py", "--quick", "--out", tmp_path)
    record = json.loads((tmp_path / "lightning_classifier.json").read_text())
    assert {name: len(curve) for name, curve in record["clean_top1"].items()} == {
        "CE": 3,
        "ANL-CE": 3,
    }
    assert record["clean_top1"]["CE"][-1] > 0.2  # a tenth is chance
    assert record["anl_ce"]["l1"] == 5e-5
