import pytest

from benchmarks.bars import BARS, evaluate, render
from benchmarks.results import Measurement
from tests.benchmarks.records import case, measured, results


def findings(run, title):
    (found,) = (f for bar, f in zip(BARS, evaluate(run), strict=True) if bar.title == title)
    return found


def test_every_bar_has_its_own_title_and_regime():
    assert len({(bar.title, bar.regime) for bar in BARS}) == len(BARS)


def test_the_worst_case_comes_first():
    run = results(
        case(measured("official", ours=30.0)),
        case(measured("official", ours=24.0), classes=1000),
        case(measured("official", ours=1.0), classes=999),
        case(measured("official", ours=1.0), regime="default"),
    )
    worst, other = findings(run, "official / ours, K >= 1000")
    assert (worst.value, worst.met, other.value, other.met) == (24.0, False, 30.0, True)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1.4), ("bfloat16", 2.5)])
def test_a_bound_itself_is_met(dtype, bound):
    run = results(
        case(measured("ours_inplace", copy=bound), dtype=dtype),
        case(measured("ours_inplace", copy=bound + 0.01), dtype=dtype),
    )
    found = findings(run, f"{dtype} kernel in place / copy")
    assert [finding.met for finding in found] == [False, True]


def test_a_subject_that_failed_is_not_met():
    run = results(case(Measurement("compiled", "", error="no compiler")))
    (finding,) = findings(run, "torch.compile / ours, K >= 1000")
    assert not finding.met
    assert str(finding).startswith("not measured")


def test_every_term_is_held_to_anl():
    run = results(
        case(measured("ours", ours=1.0), measured("GCE", ours=0.5), measured("FL", ours=1.6),
             table="terms")
    )  # fmt: skip
    found = findings(run, "any term / ANL-CE")
    assert [(f.value, f.met) for f in found] == [(1.6, False), (0.5, True)]


def test_memory():
    run = results(
        case(Measurement("ours", "", ratios={"logits": 1.001}), table="memory"),
        case(Measurement("ours_inplace", "", ratios={"logits": 0.0}), table="memory"),
    )
    assert findings(run, "extra memory / logits")[0].met
    assert findings(run, "extra memory in place / logits")[0].met


def test_rendering():
    run = results(case(measured("official", ours=24.0)), case(measured("official", ours=30.0)))
    assert "NOT MET (1 of 2)" in render(run)
    assert "no such case" in render(run)
    assert render(run, every=True).count("official / ours, K >= 1000") == 2
