import json

import pytest

pytest.importorskip("rich")

from benchmarks import cli
from benchmarks.devices import DEVICES
from benchmarks.jobs import Job, JobFailed, Limit, run_job

TINY = "rows --tables main --shapes 8x32 --dtypes float32 --scales 1 --regime warm --rounds 2"


def test_end_to_end(tmp_path, capsys):
    out, markdown = tmp_path / "results" / "rows.json", tmp_path / "rows.md"
    few = ["--subjects", "ours", "ours_inplace", "copy", "cross_entropy"]
    assert (
        cli.main(
            [*TINY.split(), *few, "--threads", "1", "--out", str(out), "--markdown", str(markdown)]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert printed == markdown.read_text()

    record = json.loads(out.read_text())
    assert record["environment"]["machine"]["threads"] == 1
    (case,) = record["cases"]
    assert [m["error"] for m in case["measurements"]] == [None] * 4
    assert case["measurements"][0]["milliseconds"]["samples"] == 2

    assert cli.main(["show", str(out)]) == 0
    assert capsys.readouterr().out == printed
    assert cli.main(["bars", str(out)]) == 0
    assert "no such case" in capsys.readouterr().out


def test_bars_and_names_of_files(tmp_path, capsys):
    out = tmp_path / "rows-{device}.json"
    few = ["--subjects", "copy", "--threads", "1"]
    assert cli.main([*TINY.split(), *few, "--bars", "--out", str(out)]) == 0
    assert "| bar " in capsys.readouterr().out
    (written,) = tmp_path.iterdir()
    assert written.name not in ("rows-{device}.json", "rows-.json")


def test_no_figure_on_a_red_gate(tmp_path, monkeypatch, capsys):
    wrong = {"what": "ANL-CE: loss", "error": 0.5, "bound": 1e-6}
    monkeypatch.setattr(cli, "run_job", lambda job, threads, limit: iter([wrong]))
    out = tmp_path / "rows.json"
    assert cli.main([*TINY.split(), "--out", str(out)]) == 1
    assert not out.exists()
    assert "WRONG ANL-CE: loss" in capsys.readouterr().err


def test_quick_changes_defaults_only():
    args = cli.parse(["rows", "--quick", "--shapes", "4x5"])
    assert (args.shapes, args.dtypes) == ([(4, 5)], ["float32"])


def test_a_job_that_dies_says_so():
    job = Job("json:loads", {"no": "such argument"}, label="the job")
    with pytest.raises(JobFailed, match="the job: exit status 1"):
        list(run_job(job, threads=None))


def test_a_gpu_has_defaults_of_its_own():
    args = cli.parse(["rows", "--device", "cuda", "--dtypes", "float16"])
    assert (8192, 131072) in args.shapes
    assert {"triton", "cuda", "liger", "quack", "copy"} <= set(args.subjects)
    assert (args.dtypes, args.tables, args.limit) == (["float16"], ["main", "terms"], 240)
    assert args.term_dtypes == ["bfloat16"]
    on_cpu = cli.parse(["rows"])
    assert on_cpu.term_dtypes is None
    assert on_cpu.limit is None
    assert on_cpu.tables == ["main", "terms", "memory"]
    assert "triton" not in on_cpu.subjects
    quick = cli.parse(["rows", "--device", "cuda", "--quick"])
    assert (quick.limit, quick.tables) == (60, ["main"])


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path, capsys):
    reason = DEVICES["cuda"].why_not()
    if reason is None:
        pytest.skip("there is one")
    out = tmp_path / "rows.json"
    assert cli.main(["rows", "--device", "cuda", "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith("--device cuda: ")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [("--regime warm", "is about the CPU's allocator"), ("--tables memory", "the main table has")],
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
