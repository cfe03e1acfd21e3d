import pytest

from benchmarks.bars import evaluate, render
from benchmarks.bounds import BARS
from benchmarks.results import Measurement
from tests.benchmarks.records import case, gpu_results, measured, on_gpu, results


def findings(run, title):
    (found,) = (f for bar, f in zip(BARS, evaluate(run, BARS), strict=True) if bar.title == title)
    return found


def test_every_bar_has_its_own_title_and_regime():
    assert len({(bar.suite, bar.device, bar.title, bar.regime) for bar in BARS}) == len(BARS)


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
    assert "NOT MET (1 of 2)" in render(run, BARS)
    assert "no such case" in render(run, BARS)
    assert render(run, BARS, every=True).count("official / ours, K >= 1000") == 2
    assert "GPU" not in render(run, BARS)


def vocabulary(*measurements, classes=131072, **changes):
    return on_gpu(case(*measurements, rows=8192, classes=classes, dtype="bfloat16"), **changes)


def test_the_share_of_the_copy_is_a_bar_for_gpus():
    run = gpu_results(
        vocabulary(measured("copy", ours=0.9)),
        vocabulary(measured("copy", ours=0.89), classes=262144),
        vocabulary(measured("copy", ours=0.1), classes=50257),  # not among its shapes
    )
    assert [f.met for f in findings(run, "GPU: copy / ours, bfloat16")] == [False, True]
    assert findings(run, "GPU: copy / ours, float32") == []


@pytest.mark.parametrize(
    ("title", "subject", "bound"),
    [
        ("F.cross_entropy / ours", "cross_entropy", 1),
        ("Liger CE / ours", "liger", 1),
        ("QuACK CE / ours", "quack", 1),
        ("QuACK CE, one pass / ours", "quack_one_pass", 1),
        ("torch.compile of ANL / ours", "compiled", 2),
        ("Triton / auto", "triton", 0.97),
        ("CUDA C++ / auto", "cuda", 0.97),
    ],
)
def test_bars_over_peers(title, subject, bound):
    run = gpu_results(
        vocabulary(measured(subject, ours=bound)), vocabulary(measured(subject, ours=bound - 0.01))
    )
    assert [f.met for f in findings(run, f"GPU: {title}")] == [False, True]


def test_bars_are_for_a_suite_and_a_device():
    cases = [case(measured("copy", ours=0.1), rows=8192, classes=131072, dtype="bfloat16")]
    assert findings(results(*cases), "GPU: copy / ours, bfloat16") == []
    assert findings(results(*cases, suite="softmax"), "bfloat16 one pass / copy") == []


def test_in_place_is_held_to_in_place():
    run = gpu_results(vocabulary(measured("cuda_inplace", ours=2.0, ours_inplace=0.9)))
    assert not findings(run, "GPU: CUDA C++ / auto, in place")[0].met


def test_a_peer_that_is_not_there_is_not_measured():
    run = gpu_results(vocabulary(Measurement("liger", "", error="No module named 'liger_kernel'")))
    (row,) = (line for line in render(run, BARS).splitlines() if "Liger CE" in line)
    assert "NOT MEASURED (in 1)" in row
    assert "kernel in place" not in render(run, BARS)  # the CPU's bars
