import json

import pytest

from benchmarks.results import Check, Measurement, Results
from benchmarks.rows.tables import render
from tests.benchmarks.records import case, measured, results


def run():
    return results(
        case(measured("ours", copy=1.25), Measurement("compiled", "c", error="no compiler")),
        case(measured("ours", copy=80.0), rows=128, classes=10),
        case(measured("ours", ours=1.0), measured("GCE", ours=0.75), table="terms", others=0.4),
        case(Measurement("ours", "OURS", ratios={"logits": 1.0}), table="memory", regime="default"),
        failures=["main 1 x 2 (warm): exit status -9"],
    )


def test_json_round_trip():
    assert Results.from_json(run().to_json()) == run()


def test_schema():
    record = json.loads(run().to_json())
    assert record["schema_version"] == 1
    spread = record["cases"][0]["measurements"][0]["milliseconds"]
    assert spread == {"min": 1.0, "p10": 1.5, "median": 2.0, "p90": 4.0, "samples": 9}


def test_another_schema_is_refused():
    record = json.loads(run().to_json()) | {"schema_version": 0}
    with pytest.raises(ValueError, match="schema version must be 1, got 0"):
        Results.from_json(json.dumps(record))


def test_nan_is_wrong():
    assert Check("", 1e-7, 1e-6).passed
    assert not Check("", float("nan"), 1e-6).passed


def test_markdown():
    text = render(run())
    assert "backend: **cpu**; 1 checks" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| 1024 x 32000 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    # 2 N K 4 bytes in 2 ms
    assert cells[:5] == ["1024 x 32000", "3", "2", "131", "1.25"]
    assert "| 128 x 10 float32 x3, warm |" in text
    assert "0.75" in text
    assert "terms, 1024 x 32000 float32 x3, warm (disturbed): others had 40% of" in text
    assert "main, 1024 x 32000 float32 x3, warm: c: no compiler" in text
    assert "exit status -9" in text
