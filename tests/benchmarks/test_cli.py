import json
from dataclasses import fields, replace

import pytest

pytest.importorskip("rich")

from benchmarks import cli, run
from benchmarks.devices import DEVICES
from benchmarks.jobs import Job, JobFailed, Limit, run_job
from benchmarks.results import Quantiles
from benchmarks.suites import SUITES
from tests.benchmarks.records import SPREAD, case, measured, options, results

TINY = "rows --tables main --shapes 8x32 --dtypes float32 --regime warm --rounds 2 --threads 1"


def test_end_to_end(tmp_path, capsys):
    few = ["--subjects", "ours", "ours_inplace", "copy", "cross_entropy"]
    out = tmp_path / "results"
    assert cli.main([*TINY.split(), *few, "--out", str(out)]) == 0
    printed = capsys.readouterr().out

    record = json.loads((out / "rows.json").read_text())
    assert record["environment"]["machine"]["threads"] == 1
    (case,) = record["cases"]
    assert [m["error"] for m in case["measurements"]] == [None] * 4
    assert case["measurements"][0]["milliseconds"]["samples"] == 2
    assert "## ANL-CE, float32, sigma 3, warm allocator" in (out / "README.md").read_text()

    file = str(out / "rows.json")
    assert cli.main(["show", file]) == 0
    assert capsys.readouterr().out == printed
    assert cli.main(["show", "--details", file]) == 0
    assert "p10-p90" in capsys.readouterr().out
    assert cli.main(["bars", file]) == 0
    assert "no such case" in capsys.readouterr().out
    for same in (["compare", file, file], ["--compare", file, file]):
        assert cli.main(same) == 0


def test_a_slower_run_is_an_exit_status(tmp_path, capsys):
    before = results(case(measured("ours", copy=1.0)))
    tripled = Quantiles(*(3 * getattr(SPREAD, f.name) for f in fields(SPREAD)))
    slower = results(case(replace(measured("ours", copy=3.0), milliseconds=tripled)))
    files = [tmp_path / "before.json", tmp_path / "after.json"]
    for file, run_ in zip(files, (before, slower), strict=True):
        file.write_text(run_.to_json())
    assert cli.main(["compare", *map(str, files)]) == 1
    assert cli.main(["compare", *map(str, reversed(files))]) == 0


def test_all_suites(tmp_path, monkeypatch, capsys):
    asked = {}

    def measure(name, suite, options, limit):
        asked[name] = (options, limit)
        return results(suite=name)

    monkeypatch.setattr(cli, "run", measure)
    arguments = ["--quick", "--suites", "rows", "softmax", "--limit", "90", "--threads", "1"]
    assert cli.main([*arguments, "--out", str(tmp_path / "{device}")]) == 0
    assert list(asked) == ["rows", "softmax"]
    (rows, limit), (softmax, same) = asked.values()
    assert same.seconds <= limit.seconds <= 90
    assert rows.regime == "warm"
    assert rows.threads == 1
    assert softmax.shapes == [(512, 32000)]
    assert {path.name for path in (tmp_path / "a-cpu-avx2").glob("*.json")} == {
        "rows.json",
        "softmax.json",
    }


def test_without_a_command_all_suites_run():
    args = cli.parse(["--quick"])
    assert (args.command, args.quick, args.suites) == ("all", True, list(SUITES))
    assert cli.parse([]).command == "all"


def test_bars_are_printed_when_asked_for(tmp_path, capsys):
    few = ["--subjects", "copy", "--out", str(tmp_path)]
    assert cli.main([*TINY.split(), *few, "--bars"]) == 0
    assert "| bar " in capsys.readouterr().out


def test_no_figure_on_a_red_gate(tmp_path, monkeypatch, capsys):
    wrong = {"what": "ANL-CE: loss", "error": 0.5, "bound": 1e-6}
    monkeypatch.setattr(run, "run_job", lambda job, threads, limit: iter([wrong]))
    out = tmp_path / "results"
    assert cli.main([*TINY.split(), "--out", str(out)]) == 1
    assert not out.exists()
    assert "WRONG ANL-CE: loss" in capsys.readouterr().err


def test_a_gate_that_dies_is_red(tmp_path, monkeypatch, capsys):
    def run_job(job, threads, limit):
        raise JobFailed(f"{job.label}: exit status -9")

    monkeypatch.setattr(run, "run_job", run_job)
    assert cli.main([*TINY.split(), "--out", str(tmp_path / "results")]) == 1
    assert "correctness gate: exit status -9" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["show", "bars"])
def test_a_file_of_another_schema(command, tmp_path, capsys):
    file = tmp_path / "old.json"
    file.write_text('{"schema_version": 1}')
    assert cli.main([command, str(file)]) == 2
    assert "run again" in capsys.readouterr().err
    assert cli.main([command, str(tmp_path / "none.json")]) == 2


def test_quick_changes_defaults_only():
    args = cli.parse(["rows", "--quick", "--shapes", "4x5"])
    assert (args.shapes, args.dtypes) == ([(4, 5)], ["float32"])


def test_a_shape_of_another_form(capsys):
    with pytest.raises(SystemExit):
        cli.parse(["rows", "--shapes", "4x5x6"])
    assert "is not of the form NxK" in capsys.readouterr().err


def test_a_process_for_each_shape_and_for_each_figure_of_memory():
    asked = options("rows", quick=True)
    found = run.jobs(SUITES["rows"].specs(asked), asked)
    timed = [job for job in found if job.function.endswith(":time")]
    memory = [job for job in found if job.function.endswith(":memory")]
    assert [job.label for job in timed] == ["main 1024 x 32000, warm", "main 65536 x 10, warm"]
    assert len(memory) == len({job.arguments["specs"][0]["subjects"] for job in memory}) > 3
    full = options("rows")
    found = run.jobs(SUITES["rows"].specs(full), full)
    main = [job for job in found if job.label.startswith("main ")]
    assert len(main) == 2 * 7  # a regime each
    assert all(job.cases == 2 for job in main)  # its dtypes


def test_a_job_that_dies_says_so():
    job = Job("json:loads", {"no": "such argument"}, label="the job")
    with pytest.raises(JobFailed, match="the job: exit status 1"):
        list(run_job(job, threads=None))


def test_a_gpu_has_defaults_of_its_own():
    args = cli.parse(["rows", "--device", "cuda", "--dtypes", "float16"])
    assert (8192, 131072) in args.shapes
    assert (args.dtypes, args.limit) == (["float16"], 240)
    assert "memory" not in args.tables
    on_cpu = cli.parse(["rows"])
    assert on_cpu.limit is None
    assert "memory" in on_cpu.tables
    quick = cli.parse(["rows", "--device", "cuda", "--quick"])
    assert (quick.limit, quick.tables) == (60, ["main"])


def test_without_a_gpu_it_says_so(tmp_path, capsys):
    if DEVICES["cuda"].why_not() is None:
        pytest.skip("there is one")
    out = tmp_path / "results"
    assert cli.main(["rows", "--device", "cuda", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("python -m benchmarks: --device cuda: ")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [("--regime warm", "is about the CPU's allocator"), ("--tables memory", "the other tables")],
)
def test_what_a_gpu_has_not(arguments, complaint, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert cli.main(["rows", "--device", "cuda", *arguments.split()]) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_a_job_after_the_limit_is_left_out():
    job = Job("tests.benchmarks.records:slow", {}, label="the job")
    with pytest.raises(JobFailed, match="the job: left out, the limit of 0 s was spent"):
        list(run_job(job, None, Limit(0)))


def test_a_job_is_stopped_at_the_limit():
    job = Job("tests.benchmarks.records:slow", {}, label="the job")
    with pytest.raises(JobFailed, match="the job: stopped, the limit of 1 s was spent"):
        list(run_job(job, None, Limit(1)))
