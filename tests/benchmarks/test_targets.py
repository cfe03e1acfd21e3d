import pytest

from benchmarks import targets
from benchmarks.results import Measurement
from benchmarks.suites import SUITES
from tests.benchmarks.records import case, gpu_results, measured, on_gpu, results


def evaluate(run):
    return targets.evaluate(run, SUITES[run.suite].targets)


def findings(run, title):
    (found,) = (of for target, of in evaluate(run).items() if target.title == title)
    return found


def test_every_target_has_its_own_title_and_regime():
    for suite in SUITES.values():
        assert len({(t.device, t.title, t.regime) for t in suite.targets}) == len(suite.targets)


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


def test_a_contender_that_failed_is_not_met():
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
    found = evaluate(run)
    assert "NOT MET (1 of 2)" in targets.render(found)
    assert "no such case" in targets.render(found)
    assert targets.render(found, every=True).count("official / ours, K >= 1000") == 2
    assert targets.missed(found) == ["official / ours, K >= 1000"]
    assert "GPU" not in targets.render(found)


def vocabulary(*measurements, classes=131072, **changes):
    return on_gpu(case(*measurements, rows=8192, classes=classes, dtype="bfloat16"), **changes)


def test_the_share_of_the_copy_is_a_target_for_gpus():
    run = gpu_results(
        vocabulary(measured("copy", ours=0.9)),
        vocabulary(measured("copy", ours=0.89), classes=262144),
        vocabulary(measured("copy", ours=0.1), classes=50257),  # not among its shapes
    )
    assert [f.met for f in findings(run, "GPU: copy / ours, bfloat16")] == [False, True]
    assert findings(run, "GPU: copy / ours, float32") == []


@pytest.mark.parametrize(
    ("title", "contender", "bound"),
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
def test_targets_over_peers(title, contender, bound):
    run = gpu_results(
        vocabulary(measured(contender, ours=bound)),
        vocabulary(measured(contender, ours=bound - 0.01)),
    )
    assert [f.met for f in findings(run, f"GPU: {title}")] == [False, True]


def test_targets_are_for_a_suite_and_a_device():
    cases = [case(measured("copy", ours=0.1), rows=8192, classes=131072, dtype="bfloat16")]
    assert "copy / ours" not in targets.render(evaluate(results(*cases)))
    assert "No target is set" in targets.render(evaluate(results(*cases, suite="softmax")))


def test_in_place_is_held_to_in_place():
    run = gpu_results(vocabulary(measured("cuda_inplace", ours=2.0, ours_inplace=0.9)))
    assert not findings(run, "GPU: CUDA C++ / auto, in place")[0].met


def test_a_peer_that_is_not_there_is_not_measured():
    run = gpu_results(vocabulary(Measurement("liger", "", error="No module named 'liger_kernel'")))
    text = targets.render(evaluate(run))
    (row,) = (line for line in text.splitlines() if "Liger CE" in line)
    assert "NOT MEASURED (in 1)" in row
    assert "kernel in place" not in text  # the CPU's target
    assert targets.missed(evaluate(run)) == []


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_what_a_small_call_has_to_meet(factor):
    sizes = {"rows": 128, "classes": 10, "dtype": "bfloat16", "regime": "default"}
    run = results(
        case(
            measured("ours", cross_entropy=factor),
            measured("ours_compiled", compiled_cross_entropy=1.2 * factor),
            **sizes,
        ),
        case(measured("import_ours"), table="import", rows=0, classes=2),
        suite="overhead",
    )
    missed = ["ours / CE, 128 x 10 bfloat16", "compiled: ours / CE, 128 x 10 bfloat16"]
    assert targets.missed(evaluate(run)) == (missed if factor > 1 else [])
    assert [f.value for f in findings(run, "import after torch, ms")] == [2.0]
