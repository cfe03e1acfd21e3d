import json
from dataclasses import replace
from pathlib import Path

import pytest

import benchmarks
from benchmarks import targets
from benchmarks.environment import device_name
from benchmarks.results import Check, Measurement, Results, merged
from benchmarks.suites import SUITES
from benchmarks.tables import details, render
from tests.benchmarks.records import (
    SPREAD,
    case,
    gpu_results,
    measured,
    on_gpu,
    results,
)

COMMITTED = sorted((Path(benchmarks.__file__).parent / "results").glob("*/*.json"))


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
    assert record["schema_version"] == 3
    assert record["cases"][0]["problem"]["classes"] == 32000
    spread = record["cases"][0]["measurements"][0]["milliseconds"]
    assert spread == {
        "min": 1.0, "p10": 1.5, "p25": 1.75, "median": 2.0, "p75": 3.0, "p90": 4.0, "max": 6.0,
        "samples": 9,
    }  # fmt: skip


def test_another_schema_is_refused(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(json.loads(run().to_json()) | {"schema_version": 2}))
    with pytest.raises(ValueError, match=r"rows.json: schema version must be 3, got 2: run again"):
        Results.from_file(file)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_committed_results_are_read(path):
    committed = Results.from_file(path)
    assert path.stem == committed.suite
    assert path.parent.name == device_name(committed.environment)
    assert committed.environment["git"]["dirty"] is False
    assert all(check.passed for check in committed.checks)
    assert f"# {committed.suite}: " in render(committed)
    found = targets.evaluate(committed, SUITES[committed.suite].targets)
    assert all(target.title in targets.render(found) for target in found)
    assert json.loads(path.read_text())["cases"] == json.loads(committed.to_json())["cases"]


def test_figures_have_the_digits_that_were_measured():
    precise = replace(SPREAD, median=2.123456789)
    text = results(case(replace(measured("ours"), milliseconds=precise))).to_json()
    assert "2.12346" in text
    assert "2.123456" not in text


def test_contenders_that_were_measured_apart_are_one_case():
    apart = [
        case(measured("ours"), table="memory"),
        case(measured("official"), table="memory"),
        case(measured("ours"), table="memory", classes=1000),
    ]
    first, other = merged(apart)
    assert [m.contender for m in first.measurements] == ["ours", "official"]
    assert other == apart[2]


@pytest.mark.parametrize(
    ("contender", "floor", "share", "speed"),
    # 2 N K 4 bytes in 2 ms are 131 GB/s
    [("ours", 1.0, 0.5, 131.072), ("ours", 0.5, 0.25, 65.536), ("ours", None, None, None),
     ("copy", 2.5, 0.5, 131.072)],
)  # fmt: skip
def test_the_roofline(contender, floor, share, speed):
    of_two = replace(case(measured(contender, copy=2.0)), floor=floor)
    assert of_two.share_of_roofline(of_two[contender]) == share
    assert of_two.gigabytes_per_second(of_two[contender]) == speed


def test_nan_is_wrong():
    assert Check("", 1e-7, 1e-6).passed
    assert not Check("", float("nan"), 1e-6).passed


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(text, label):
    return [cells(line) for line in text.splitlines() if line.startswith(f"| {label} ")]


def test_markdown():
    text = render(run())
    assert "backend **cpu**; 1 checks" in text
    assert "## ANL-CE, float32, sigma 3, warm allocator" in text
    first, of_terms, in_memory = rows(text, "OURS")
    assert first == ["OURS", "2 (80%)", "2 (1%)"]
    assert of_terms == ["OURS", "2"]
    assert in_memory == ["OURS", "125 MiB (1.00 x logits)"]
    assert rows(text, "GCE") == [["GCE", "2 (0.75 x)"]]
    assert "| 1024 x 32000 (disturbed) |" in text
    assert "terms, 1024 x 32000 float32 x3, warm (disturbed): others had 40% of" in text
    assert "c, main, 1024 x 32000 float32 x3, warm: no compiler" in text
    assert "exit status -9" in text


def test_a_peer_that_is_missing_everywhere_is_one_line():
    missing = Measurement("liger", "Liger", error="No module named 'liger_kernel'")
    text = render(results(case(missing), case(missing, classes=10)))
    assert text.count("No module named") == 1
    assert "- Liger, in 2 cases: No module named 'liger_kernel'" in text


def test_few_samples_are_marked():
    few = replace(SPREAD, samples=4)
    text = render(results(case(replace(measured("ours"), milliseconds=few))))
    assert rows(text, "OURS") == [["OURS", "2†"]]


def test_compilers_have_their_time_by_contender():
    def compiled(name, ms):
        return replace(measured(name), label=f"torch.compile of {name}", first_call_ms=ms)

    text = render(
        results(
            case(compiled("ANL", 2000.0), compiled("CE", 500.0)),
            case(compiled("ANL", 3000.0), classes=10),
        )
    )
    assert "torch.compile of ANL 2 to 3; torch.compile of CE 0.5 (compilation" in text


def test_short_times_are_in_microseconds():
    short = replace(SPREAD, median=0.0123)
    text = render(results(case(replace(measured("ours"), milliseconds=short))))
    assert "| microseconds |" in text
    assert rows(text, "OURS") == [["OURS", "12.3"]]


def test_the_spread_of_logits_and_the_parts_of_a_step_are_columns():
    text = render(
        results(
            case(measured("ours"), table="sigma", sigma=1.0),
            case(measured("ours"), table="sigma", sigma=5.0),
            case(measured("ours"), table="phases"),
            case(measured("ours"), table="phases", phase="inference"),
        )
    )
    assert "| 1024 x 32000, sigma 1 | 1024 x 32000, sigma 5 |" in text
    assert "| 1024 x 32000, forward and backward | 1024 x 32000, forward without a gra" in text


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
    assert rows(text, "OURS") == [["OURS", "2 (80%)", "2 (100%)"]]
    assert rows(text, "LIGER") == [["LIGER", "2* (50%, 1.5 x)", "-"]]  # it waits for the GPU
    assert rows(text, '"auto" takes') == [['"auto" takes', "triton", "cuda"]]
    assert "- QuACK, main, 1024 x 32000 float32 x3, cuda, auto: No module named 'quack'" in text
    assert "## Every term beside ANL-CE, float32, sigma 3, on triton" in text
    assert "the limit of 240 s was spent" in text


def test_details():
    text = details(gpu_run())
    assert "## main: 1024 x 32000 float32 x3, cuda, auto" in text
    assert rows(text, "OURS")[0] == [
        "OURS", "2", "1.5-4", "131", "80%", "1", "125 MiB (1.00 x logits)", "2000 (1500-4000)", "9",
        "0.008 s",
    ]  # fmt: skip


def test_the_name_of_a_device_is_fit_for_a_file():
    assert device_name(gpu_run().environment) == "nvidia-x100-80-gb"
    assert device_name(run().environment) == "a-cpu-avx2"
