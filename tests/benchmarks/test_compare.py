from dataclasses import replace
from functools import partial

import pytest

from benchmarks import compare as comparisons
from benchmarks.compare import render
from benchmarks.results import Results
from tests.benchmarks.samples_for_plots import TIMES, failing, sample, sized, timed

compare = partial(comparisons.compare, ours=lambda contender: contender.startswith("ours"))


def run(ours=1.25, copy=1.0, **facts):
    times = TIMES | {"ours": ours, "copy": copy}
    return sample(timed(1024, 32000, times, **facts))


def test_a_run_is_equal_to_itself():
    same = compare(run(), Results.from_json(run().to_json()))
    assert not same.regressed
    assert not same.improvements + same.context + same.doubtful
    assert not same.warnings
    assert len(same.changes) == len(TIMES) - 1  # the roofline is 1 by definition
    assert {change.what for change in same.changes} == {"x copy"}


def test_a_slowdown_beyond_noise_is_a_regression():
    found = compare(run(), run(ours=1.5))
    assert found.regressed
    (change,) = found.regressions
    assert (change.contender, change.before, change.after) == ("ours", 1.25, 1.5)
    assert change.size == pytest.approx(0.2)
    # 5% and twice 2% of noise, which add as errors do
    assert change.allowance == pytest.approx(0.05 + 0.02 * 2**0.5)


def test_a_speedup_is_none():
    found = compare(run(ours=1.5), run())
    assert not found.regressed
    assert [change.contender for change in found.improvements] == ["ours"]


def test_noise_is_no_regression():
    assert not compare(run(width=0.15), run(ours=1.5, width=0.15)).regressed
    assert compare(run(width=0.15), run(ours=1.7, width=0.15)).regressed
    assert not compare(run(), run(ours=1.5), threshold=0.2).regressed


def test_a_slower_machine_is_no_regression():
    slower = sample(timed(1024, 32000, {name: 1.5 * ms for name, ms in TIMES.items()}))
    assert not compare(run(), slower).regressed


def test_a_faster_roofline_is_doubted():
    found = compare(run(), run(copy=0.7))
    assert not found.regressed
    assert {change.doubt for change in found.doubtful} == {
        "the roofline moved, not the milliseconds"
    }
    # Milliseconds of another machine say nothing about it.
    other = replace(sample(*run(copy=0.7).cases, cpu="another"))
    assert compare(run(), other).regressed


def test_milliseconds_count_where_there_is_no_roofline():
    found = compare(run(roofline=None), run(roofline=None, ours=1.5))
    (change,) = found.regressions
    assert (change.what, change.before, change.after) == ("ms", 1.25, 1.5)


@pytest.mark.parametrize(
    ("facts", "why"), [({"taken_by_others": 0.3}, "disturbed"), ({"samples": 3}, "3 samples")]
)
def test_what_is_not_to_be_believed_is_reported_only(facts, why):
    found = compare(run(), run(ours=2.5, **facts))
    assert not found.regressed
    (change,) = (change for change in found.doubtful if change.contender == "ours")
    assert change.doubt == why
    assert f"| {why} |" in render(found)


def test_others_are_context():
    before, after = run(), sample(timed(1024, 32000, TIMES | {"compiled": 9.0}))
    found = compare(before, after)
    assert not found.regressed
    assert [change.contender for change in found.context] == ["compiled"]
    assert compare(before, after, ours=lambda contender: contender == "compiled").regressed


@pytest.mark.parametrize(("after", "regressed"), [(1.01, False), (1.1, True), (0.5, False)])
def test_memory_has_a_small_tolerance(after, regressed):
    before = sample(sized(1024, 32000, {"ours": 1.0, "ours_inplace": 0.0}))
    found = compare(before, sample(sized(1024, 32000, {"ours": after, "ours_inplace": 0.0})))
    assert found.regressed == regressed
    assert [c.after for c in found.improvements] == ([0.5] if after == 0.5 else [])


def test_memory_of_small_logits_is_rounded_by_allocators():
    before, after = (sample(sized(128, 10, {"ours": size})) for size in (1.0, 100.0))
    assert not compare(before, after).regressed


def test_failures_of_ours_are_regressions():
    def without(name):
        return sample(*(failing(case, name) for case in run().cases))

    assert compare(run(), without("ours")).regressed
    assert not compare(run(), without("official")).regressed
    assert not compare(without("ours"), run()).regressed
    assert "## No longer runs" in render(compare(run(), without("ours")))
    assert "## Runs now" in render(compare(without("ours"), run()))


def test_a_contender_that_is_gone_is_one_that_no_longer_runs():
    def without(name):
        times = {contender: ms for contender, ms in TIMES.items() if contender != name}
        return sample(timed(1024, 32000, times))

    gone = compare(run(), without("ours_inplace"))
    assert gone.regressed
    assert "anl_kernels, inplace=True: not measured" in render(gone).split("## No longer runs")[1]
    assert not compare(run(), without("official")).regressed
    back = compare(without("ours_inplace"), run())
    assert not back.regressed
    assert "anl_kernels, inplace=True: not measured" in render(back).split("## Runs now")[1]


def test_cases_and_surroundings_that_do_not_match():
    before = sample(timed(8, 10), timed(8, 20))
    after = sample(timed(8, 20), timed(8, 30), threads=4)
    after.environment["versions"]["torch"] = "3.0"
    found = compare(before, after)
    assert found.only_before == ["main, 8 x 10 float32 x3, default"]
    assert found.only_after == ["main, 8 x 30 float32 x3, default"]
    assert found.warnings == ["machine: threads: 2 -> 4", "versions: torch: 2.13 -> 3.0"]
    text = render(found)
    assert "- Warning: machine: threads: 2 -> 4" in text
    assert "## Only in the later run" in text


def test_two_suites_cannot_be_compared():
    with pytest.raises(ValueError, match="'rows' with 'scaling'"):
        compare(sample(), sample(suite="scaling"))


def test_markdown():
    text = render(compare(run(), run(ours=1.5)))
    assert text.startswith("# rows: 0123456 of 2026-01-02")
    assert "**1 of ours worse, 0 better, 0 no longer running**; 5 figures compared" in text
    (row,) = (line for line in text.splitlines() if "| anl_kernels |" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == ["anl_kernels", "x copy", "1.25", "1.5", "+20%", "8%"]
