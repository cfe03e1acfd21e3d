import json
import runpy
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

pytest.importorskip("rich")

from benchmarks import cli, run
from benchmarks.cases import case_of, spec_from
from benchmarks.devices import DEVICES
from benchmarks.environment import ROOT
from benchmarks.jobs import Job, JobFailed, Limit, OutOfTime, run_job
from benchmarks.results import Quantiles, Results
from benchmarks.suites import SUITES
from tests.benchmarks.records import SPREAD, case, measured, options, results

TINY = "rows --tables main --shapes 8x32 --dtypes float32 --regime warm --rounds 2 --threads 1"


def test_end_to_end(tmp_path, capsys):
    few = ["--contenders", "ours", "ours_inplace", "copy", "cross_entropy"]
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
    assert cli.main(["targets", file]) == 0
    assert "no such case" in capsys.readouterr().out
    assert cli.main(["compare", file, file]) == 0


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
        return results(case(measured("ours")), suite=name), 0

    monkeypatch.setattr(cli, "run", measure)
    monkeypatch.setattr(cli, "describe", lambda threads, device: results().environment)
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


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.1, cli.MISSED)])
def test_a_target_that_is_missed_is_an_exit_status(factor, status, tmp_path, monkeypatch, capsys):
    small = case(measured("ours", cross_entropy=factor), rows=1, classes=10, dtype="float32")
    measure = results(small, suite="overhead"), 0
    monkeypatch.setattr(cli, "run", lambda *arguments: measure)
    command = ["overhead", "--out", str(tmp_path)]
    assert cli.main(command) == 0
    assert "| target " not in capsys.readouterr().out
    assert cli.main([*command, "--targets"]) == status
    shown = capsys.readouterr()
    assert "| target " in shown.out
    assert ("missed: ours / CE, 1 x 10 float32" in shown.err) == bool(status)
    assert cli.main(["targets", str(tmp_path / "overhead.json")]) == status


def test_no_figure_on_a_red_gate(tmp_path, monkeypatch, capsys):
    wrong = {"what": "ANL-CE: loss", "error": 0.5, "bound": 1e-6}
    monkeypatch.setattr(run, "run_job", lambda job, threads, limit: iter([wrong]))
    out = tmp_path / "results"
    assert cli.main([*TINY.split(), "--out", str(out)]) == 1
    assert not list(out.iterdir())
    assert "WRONG ANL-CE: loss" in capsys.readouterr().err


def test_a_gate_that_dies_is_red(tmp_path, monkeypatch, capsys):
    def run_job(job, threads, limit):
        raise JobFailed(job, "exit status -9")

    monkeypatch.setattr(run, "run_job", run_job)
    assert cli.main([*TINY.split(), "--out", str(tmp_path / "results")]) == 1
    assert "correctness gate: exit status -9" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["show", "targets"])
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
    assert len(memory) == len({job.arguments["specs"][0]["contenders"] for job in memory}) > 3
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


def died(job):
    raise JobFailed(job, "exit status -9")


def stopped(job):
    raise OutOfTime(job, "stopped, the limit of 1 s was spent")


def interrupted(job):
    raise KeyboardInterrupt


@pytest.fixture
def jobs_end(monkeypatch):
    """Let the first timed job end so after a record, and others deliver all."""

    def set_end(end, of="main"):
        def run_job(job, threads, limit):
            if job.function.endswith(":check"):
                yield from [end(job)] if of == "gate" else []
                return
            for place, spec in enumerate(map(spec_from, job.arguments["specs"])):
                if place and job.label.startswith(of):
                    end(job)
                yield asdict(case_of(spec, [measured(name) for name in spec.contenders]))

        monkeypatch.setattr(run, "run_job", run_job)

    return set_end


TWO_DTYPES = TINY.replace("float32", "float32 bfloat16")


def cases_of(out):
    run_ = Results.from_file(out / "rows.json")
    errors = [{m.contender: m.error for m in one.measurements} for one in run_.cases]
    return errors, run_.failures


def measure_two(out):
    """A job of two cases, one for each dtype."""
    return cli.main([*TWO_DTYPES.split(), "--contenders", "ours", "--out", str(out)])


def test_a_job_that_dies_leaves_errors(jobs_end, tmp_path, capsys):
    jobs_end(died)
    assert measure_two(tmp_path) == 1
    errors, failures = cases_of(tmp_path)
    assert errors == [
        {"ours": None, "copy": None},
        dict.fromkeys(("ours", "copy"), "exit status -9"),
    ]
    assert failures == ["main 8 x 32, warm: exit status -9"]
    assert failures[0] in capsys.readouterr().err


def test_a_job_that_is_out_of_time_is_no_error(jobs_end, tmp_path, capsys):
    jobs_end(stopped)
    assert measure_two(tmp_path) == 0
    assert cases_of(tmp_path)[0] == [{"ours": None, "copy": None}]
    assert "rows: main 8 x 32, warm: stopped, the limit" in capsys.readouterr().err


def test_what_was_measured_before_an_interruption_is_kept(jobs_end, tmp_path, capsys):
    jobs_end(interrupted)
    assert measure_two(tmp_path) == 130
    errors, failures = cases_of(tmp_path)
    assert errors == [{"ours": None, "copy": None}]
    assert failures == ["main 8 x 32, warm: interrupted, and what was to follow"]
    assert f"written to {tmp_path / 'rows.json'}" in capsys.readouterr().err
    assert failures[0] in (tmp_path / "README.md").read_text()


def test_an_interrupted_gate(jobs_end, tmp_path, capsys):
    jobs_end(interrupted, of="gate")
    assert measure_two(tmp_path) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    assert not list(tmp_path.iterdir())


def test_a_gate_that_is_out_of_time_leaves_the_suite_out(jobs_end, tmp_path, capsys):
    jobs_end(stopped, of="gate")
    assert measure_two(tmp_path) == 0
    assert "rows: left out, correctness gate: stopped" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_all_ends_well_when_the_limit_is_spent(tmp_path, capsys):
    few = ["--quick", "--suites", "rows", "train", "--limit", "1e-9"]
    assert cli.main([*few, "--out", str(tmp_path)]) == 0
    error = capsys.readouterr().err
    assert "rows: left out, the limit of 1e-09 s" in error
    assert "train: left out, the limit of 1e-09 s" in error


def test_a_broken_neighbour_costs_no_results(jobs_end, tmp_path, capsys):
    jobs_end(died, of="none")
    (tmp_path / "linear.json").write_text("{")
    assert measure_two(tmp_path) == 2
    out, error = capsys.readouterr()
    assert "| OURS " in out
    assert "no report: " in error
    assert "linear.json: not a file of results" in error
    assert cases_of(tmp_path)[1] == []


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "run", None)
    (tmp_path / "file").write_text("")
    assert measure_two(tmp_path / "file") == 2
    assert "File exists" in capsys.readouterr().err
    (tmp_path / "README.md").write_text("# Mine")
    assert measure_two(tmp_path) == 2
    assert "is not a report" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert measure_two(tmp_path / "new") == 2
    assert "pip install matplotlib" in capsys.readouterr().err


def test_a_job_may_be_longer_than_an_argument():
    job = Job("tests.benchmarks.records:lengths", {"texts": ["x" * 1000] * 1000}, "the job")
    assert [record["rows"] for record in run_job(job, None)] == [1000 * 1000]


def test_a_job_ends_with_whatever_it_has_started():
    records = run_job(Job("tests.benchmarks.records:with_a_child", {}, "the job"), None)
    child = next(records)["rows"]
    records.close()
    assert is_gone(child)


def is_gone(process):
    for _ in range(100):
        status = Path(f"/proc/{process}/stat")
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def worker_of(process):
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        with suppress(OSError):  # It may have ended.
            if "benchmarks.worker" in Path(f"/proc/{child}/cmdline").read_text():
                return child
    return None


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_a_run_that_is_ended_ends_its_worker(tmp_path):
    command = [sys.executable, "-m", "benchmarks", *TINY.split(), "--out", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    worker = None
    while worker is None and process.poll() is None:
        time.sleep(0.1)
        worker = worker_of(process.pid)
    time.sleep(0.1)  # until its parent knows
    process.terminate()
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "Traceback" not in error
    assert worker
    assert is_gone(worker)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("rows --contenders ours softmax", "rows has no softmax, but ours, ours_inplace"),
        ("rows --contenders quack", "quack is not measured on cpu"),
        (
            "rows --tables sigma --contenders ours_apl",
            "sigma: no table of these has the contenders",
        ),
        ("train --shapes 60x8x100", "--shapes 60x8x100: tokens must be a multiple of 8"),
        ("train --memory-shapes 60x8x100", "--memory-shapes 60x8x100: tokens must be a multiple"),
    ],
)
def test_what_does_not_go_together(arguments, complaint, tmp_path, capsys):
    assert cli.main([*arguments.split(), "--out", str(tmp_path / "new")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quick", [False, True])
def test_contenders_by_default_are_there(device, quick):
    for name, suite in SUITES.items():
        asked = suite.defaults(device, quick).get("contenders", [])
        assert set(asked) <= set(suite.contenders(device)), name


def test_the_roofline_and_the_library_are_measured_beside_what_is_asked_for():
    asked = options("rows", contenders=["careful"])
    found = {spec.table: spec.contenders for spec in SUITES["rows"].specs(asked)}
    assert found == {
        "main": ("ours", "copy", "careful"),
        "phases": ("ours", "copy", "careful"),
        "memory": ("ours", "careful"),
    }


def test_memory_is_of_the_first_dtype():
    asked = options("rows", dtypes=["bfloat16", "float32"], tables=["memory"])
    assert {spec.problem.dtype for spec in SUITES["rows"].specs(asked)} == {"bfloat16"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--shapes 4xa", "'4xa' is not of the form NxK"),
        ("--shapes 4x-5", "'4x-5' is not of the form NxK"),
        ("--shapes 0x5", "'0' is not a positive whole number"),
        ("--shapes 4x1", "'4x1' has fewer than 2 classes"),
        ("--rounds 0", "'0' is not a positive whole number"),
        ("--threads -1", "not a positive whole number"),
        ("--seconds 0", "'0' is not a positive number"),
        ("--limit nan", "'nan' is not a positive number"),
        ("--sigmas 1 inf", "'inf' is not a positive number"),
    ],
)
def test_values_that_are_impossible(arguments, complaint, capsys):
    with pytest.raises(SystemExit):
        cli.parse(["rows", *arguments.replace(" -1", "=-1").split()])
    assert complaint in capsys.readouterr().err


def test_settings_may_stand_before_the_command():
    args = cli.parse(["--quick", "rows", "--tables", "main"])
    assert (args.command, args.quick, args.tables) == ("rows", True, ["main"])
    assert cli.parse(["--device", "cuda", "rows"]).device == "cuda"
    assert cli.parse(["--suites", "rows", "train"]).suites == ["rows", "train"]


def test_defaults_in_the_help_are_as_one_types_them(capsys):
    with pytest.raises(SystemExit):
        cli.parse(["rows", "--quick", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: 1024x32000 65536x10)" in text


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "3",
        '{"schema_version": 3}',
        '{"schema_version": 3, "checks": [], "cases": 1}',
        results().to_json().replace('"git"', '"got"'),
        results().to_json().replace('"suite": "rows"', '"suite": "rolls"'),
    ],
)
def test_a_file_of_something_else(text, tmp_path, capsys):
    file = tmp_path / "rows.json"
    file.write_text(text)
    assert cli.main(["show", str(file)]) == 2
    assert "rows.json: not a file of results" in capsys.readouterr().err


def test_without_rich_it_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    for name in ("benchmarks.cli", "benchmarks.run"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module("benchmarks", run_name="__main__")
    assert "pip install rich" in capsys.readouterr().err


def test_a_job_after_the_limit_is_left_out():
    job = Job("tests.benchmarks.records:slow", {}, label="the job")
    with pytest.raises(JobFailed, match="the job: left out, the limit of 0 s was spent"):
        list(run_job(job, None, Limit(0)))


def test_a_job_is_stopped_at_the_limit():
    job = Job("tests.benchmarks.records:slow", {}, label="the job")
    with pytest.raises(JobFailed, match="the job: stopped, the limit of 1 s was spent"):
        list(run_job(job, None, Limit(1)))
