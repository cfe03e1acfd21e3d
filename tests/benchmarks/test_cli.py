import json

import pytest

pytest.importorskip("rich")

from benchmarks import cli
from benchmarks.jobs import Job, JobFailed, run_job

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


def test_no_figure_on_a_red_gate(tmp_path, monkeypatch, capsys):
    wrong = {"what": "ANL-CE: loss", "error": 0.5, "bound": 1e-6}
    monkeypatch.setattr(cli, "run_job", lambda job, threads: iter([wrong]))
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
