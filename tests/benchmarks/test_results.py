import json
from dataclasses import replace
from pathlib import Path

import pytest

import benchmarks
from benchmarks.bars import evaluate
from benchmarks.bounds import BARS
from benchmarks.environment import device_name
from benchmarks.results import Check, Measurement, Results
from benchmarks.rows.tables import render
from tests.benchmarks.records import (
    SPREAD,
    case,
    gpu_results,
    measured,
    on_gpu,
    results,
)

COMMITTED = sorted((Path(benchmarks.__file__).parent / "results").glob("*.json"))


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
    assert record["schema_version"] == 2
    spread = record["cases"][0]["measurements"][0]["milliseconds"]
    assert spread == {"min": 1.0, "p10": 1.5, "median": 2.0, "p90": 4.0, "samples": 9}


def test_another_schema_is_refused():
    record = json.loads(run().to_json()) | {"schema_version": 0}
    with pytest.raises(ValueError, match="schema version must be 1 or 2, got 0"):
        Results.from_json(json.dumps(record))


def test_version_1_is_read():
    record = json.loads(run().to_json()) | {"schema_version": 1}
    for old in record["cases"]:
        del old["backend"], old["auto"]
        for measurement in old["measurements"]:
            del measurement["host_milliseconds"], measurement["caught_up"]
    assert Results.from_json(json.dumps(record)) == run()


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_make_their_document(path):
    committed = Results.from_json(path.read_text("utf-8"))
    assert render(committed) == path.with_suffix(".md").read_text("utf-8")
    assert any(finding.met for found in evaluate(committed, BARS) for finding in found)


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


def gpu_run():
    queued = replace(measured("ours", copy=1.25, ours=1.0, logits=1.0), host_milliseconds=SPREAD)
    return gpu_results(
        on_gpu(
            case(
                queued,
                replace(measured("copy", ours=0.8, copy=1.0), caught_up=0.0),
                replace(measured("liger", ours=1.5, copy=2.0), caught_up=1.0),
                Measurement("quack", "QuACK", error="No module named 'quack'"),
            ),
            auto="triton",
        ),
        on_gpu(case(measured("ours", copy=1.0), classes=10, rows=65536), auto="cuda"),
        on_gpu(case(measured("GCE", ours=0.75), table="terms"), backend="triton"),
        on_gpu(case(measured("GCE", ours=0.5), table="terms"), backend="cuda"),
        failures=["terms: left out, the limit of 240 s was spent"],
    )


def test_gpu_results_round_trip():
    assert Results.from_json(gpu_run().to_json()) == gpu_run()


def test_gpu_markdown():
    text = render(gpu_run())
    assert "NVIDIA X100 (80 GB), compute capability 9.0, 132 multiprocessors, 60 MiB of L2" in text
    overview = [line for line in text.splitlines() if line.startswith("| OURS ")]
    assert [cell.strip() for cell in overview[0].strip("|").split("|")] == [
        "OURS", "80% (2)", "100% (2)",
    ]  # fmt: skip
    assert '| "auto" takes |' in text
    # 2 N K 4 bytes in 2 ms
    assert [cell.strip() for cell in overview[1].strip("|").split("|")] == [
        "OURS", "2", "1.5-4", "131", "80%", "1", "1.00", "2000 (1500-4000)", "9", "0.008 s",
    ]  # fmt: skip
    assert "50% (2*)" in text  # liger waits for the GPU
    assert "QuACK: No module named 'quack'" in text
    assert "| 1024 x 32000 float32 x3, cuda, triton |" in text
    assert "the limit of 240 s was spent" in text


def test_the_name_of_a_device_is_fit_for_a_file():
    assert device_name(gpu_run().environment) == "nvidia-x100-80-gb"
    assert device_name(run().environment) == "a-cpu"
