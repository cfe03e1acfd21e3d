import sys
import types
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import tables
from benchmarks.bars import evaluate
from benchmarks.bounds import BARS
from benchmarks.cases import memory, timed
from benchmarks.gate import gate
from benchmarks.inputs import make_inputs
from benchmarks.problems import Problem
from benchmarks.run import jobs
from benchmarks.subjects import SUBJECTS
from benchmarks.subjects.linear import unfused
from benchmarks.suite import Spec
from benchmarks.suites.linear import LINEAR, MAIN, OURS
from benchmarks.timing import Budget
from tests.benchmarks.records import case, gpu_results, measured, on_gpu, options, results
from tests.benchmarks.steps import loss_and_gradients
from tests.helpers import error

TINY = Problem(24, 40, hidden=16)
BUDGET = Budget(seconds=0.01, max_rounds=2)
ANL = ["linear_unfused", "linear_careful", "linear_compiled"]
CROSS_ENTROPY = ["linear_torch", "linear_torch_chunked"]


@pytest.fixture
def inputs():
    return make_inputs(TINY, copies=2)


@pytest.fixture
def uncompiled(monkeypatch):
    """What is given to compilers, without them."""
    monkeypatch.setattr("benchmarks.subjects.linear.compiled_alone", lambda criterion: criterion)


def spec(*subjects, problem=TINY):
    return Spec("main", problem, subjects, roof="products", ours=OURS)


def test_sizes_are_rows_hidden_and_classes():
    specs = LINEAR.specs(options("linear", shapes=[(8, 16, 32)], memory_shapes=[(4, 5, 6)]))
    assert [(s.table, s.problem.shape) for s in specs] == [
        ("main", "8 x 16 x 32"),
        ("memory", "4 x 5 x 6"),
    ]
    main, extra_memory = specs
    assert (main.problem.rows, main.problem.hidden, main.problem.classes) == (8, 16, 32)
    assert (main.roof, main.floor, main.ours) == ("products", 1.0, "linear_unfused")
    assert "products" not in extra_memory.subjects
    assert (extra_memory.measured, extra_memory.regime) == ("memory", "default")


def test_a_gpu_has_its_own_peers_and_dtype():
    specs = LINEAR.specs(options("linear", "cuda"))
    assert {s.problem.dtype for s in specs} == {"bfloat16"}
    assert all(s.subjects == MAIN for s in specs)
    assert "linear_quack" not in LINEAR.specs(options("linear"))[0].subjects


def test_hidden_state_and_weight_give_logits_of_the_standard_deviation():
    hidden, weight = make_inputs(replace(TINY, rows=500, classes=400), copies=1).leaves[0]
    assert (hidden.shape, weight.shape) == ((500, 16), (400, 16))
    assert F.linear(hidden, weight).std().item() == pytest.approx(3.0, rel=0.2)


@pytest.mark.parametrize("name", ANL)
def test_all_of_anl_give_the_same(name, inputs, uncompiled):
    loss, gradients = loss_and_gradients(name, inputs)
    wanted, wanted_gradients = loss_and_gradients("linear_official", inputs)
    assert error(loss, wanted) <= 1e-5
    assert [gradient.shape for gradient in gradients] == [(24, 16), (40, 16)]
    for gradient, true in zip(gradients, wanted_gradients, strict=True):
        assert error(gradient, true) <= 1e-5


@pytest.mark.parametrize("name", CROSS_ENTROPY)
def test_all_of_cross_entropy_give_the_same(name, inputs):
    if not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this PyTorch has none")
    loss, gradients = loss_and_gradients(name, inputs)
    wanted, wanted_gradients = loss_and_gradients("linear_unfused_cross_entropy", inputs)
    assert error(loss, wanted) <= 1e-5
    for gradient, true in zip(gradients, wanted_gradients, strict=True):
        assert error(gradient, true) <= 1e-5


def test_cross_entropy_is_something_else(inputs):
    loss, _ = loss_and_gradients("linear_unfused_cross_entropy", inputs)
    assert error(loss, loss_and_gradients("linear_official", inputs)[0]) > 0.1


def test_the_roof_is_the_three_products(inputs):
    hidden, weight = (leaf.detach() for leaf in inputs.leaves[1])
    logits, of_hidden, of_weight = SUBJECTS["products"].build(inputs)(1)()
    torch.testing.assert_close(logits, hidden @ weight.t())
    torch.testing.assert_close(of_hidden, logits @ weight)
    torch.testing.assert_close(of_weight, logits.t() @ hidden)
    assert not any(t.requires_grad for t in (logits, of_hidden, of_weight))


@pytest.mark.parametrize(
    ("device", "impl"), [("cpu", {"impl": "torch_compile"}), ("cuda", {})], ids=["cpu", "cuda"]
)
def test_cut_cross_entropy_compiles_where_it_has_no_kernel(device, impl, inputs, monkeypatch):
    seen = {}

    def linear_cross_entropy(hidden, weight, target, **kwargs):
        seen.update(kwargs)
        return F.cross_entropy(F.linear(hidden, weight), target)

    package = types.SimpleNamespace(linear_cross_entropy=linear_cross_entropy)
    monkeypatch.setitem(sys.modules, "cut_cross_entropy", package)
    loss, _ = loss_and_gradients(
        "linear_cce", replace(inputs, problem=replace(TINY, device=device))
    )
    assert seen == impl
    assert torch.equal(loss, loss_and_gradients("linear_unfused_cross_entropy", inputs)[0])


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [
        (
            "linear_liger",
            "liger_kernel.transformers.functional",
            "liger_fused_linear_cross_entropy",
        ),
        ("linear_quack", "quack.linear_cross_entropy", "chunked_linear_cross_entropy"),
    ],
)
def test_packages_are_asked_for_the_mean(name, module, function, inputs, monkeypatch):
    def mean(hidden, weight, target, reduction="mean"):
        return F.cross_entropy(F.linear(hidden, weight), target, reduction=reduction)

    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{function: mean}))
    loss, gradients = loss_and_gradients(name, inputs)
    wanted, wanted_gradients = loss_and_gradients("linear_unfused_cross_entropy", inputs)
    for mine, true in zip([loss, *gradients], [wanted, *wanted_gradients], strict=True):
        assert torch.equal(mine, true)


def test_what_cannot_run_is_a_row_that_says_so(monkeypatch):
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    for module in ("liger_kernel.transformers.functional", "cut_cross_entropy"):
        monkeypatch.setitem(sys.modules, module, None)
    case = timed(spec(OURS, "products", "linear_torch", "linear_liger", "linear_cce"), BUDGET)
    errors = {m.subject: m.error for m in case.measurements}
    assert (errors.pop(OURS), errors.pop("products")) == (None, None)
    assert errors["linear_torch"].startswith("AttributeError: ")
    assert "linear_cross_entropy" in errors["linear_torch"]
    assert errors["linear_liger"].startswith("ModuleNotFoundError: ")
    assert errors["linear_cce"].startswith("ModuleNotFoundError: ")


def test_others_are_divided_by_ours_and_by_the_roof():
    case = timed(spec(OURS, "products", "linear_unfused_cross_entropy"), BUDGET)
    assert case.ours == OURS
    for measurement in case.measurements:
        assert case.over_ours(measurement) > 0
        assert case.share_of_roof(measurement) > 0
        assert case.gigabytes_per_second(measurement) is None
    assert case.over_ours(case[OURS]) == 1
    assert case.share_of_roof(case["products"]) == 1


def test_arithmetic_per_second():
    one = replace(case(measured("products"), rows=1000, hidden=500, classes=2000), roof="products")
    assert one.teraflops_per_second(one["products"]) == pytest.approx(3e-3 / 1e-3)
    assert one.teraflops_per_second(one["linear_fused"]) is None
    assert case(measured("copy")).teraflops_per_second(measured("copy")) is None
    (heading, row) = (
        line.split("|")
        for line in tables.details(results(one, suite="linear")).splitlines()
        if line.startswith(("| subject", "| PRODUCTS"))
    )
    assert row[[cell.strip() for cell in heading].index("TFLOP/s")].strip() == "3"


@pytest.mark.parametrize("chunk", [1 << 26, 7 * 40], ids=["whole", "in parts"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gate_is_green(dtype, chunk, monkeypatch):
    monkeypatch.setattr("benchmarks.gate.CHUNK_ELEMENTS", chunk)
    checks = list(gate([spec(OURS, "products", problem=replace(TINY, dtype=dtype))]))
    assert [check for check in checks if not check.passed] == []
    assert [check.what.rsplit(": ", 1)[1] for check in checks] == [
        "loss",
        "gradient of the hidden state",
        "gradient of the weight",
    ]


@pytest.mark.parametrize("leaf", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gate_is_red_where_one_gradient_is_wrong(leaf, dtype, monkeypatch):
    def wrong(*tensors):
        tensors = list(tensors)
        exact = tensors[leaf]
        tensors[leaf] = exact.detach() + 1.05 * (exact - exact.detach())
        return unfused(*tensors)

    monkeypatch.setitem(SUBJECTS, OURS, replace(SUBJECTS[OURS], criterion=wrong))
    checks = list(gate([spec(OURS, problem=replace(TINY, dtype=dtype))]))
    assert [check.passed for check in checks] == [True, leaf != 0, leaf != 1]


def test_memory_is_measured_in_a_process_for_each_subject():
    few = [OURS, "linear_unfused_cross_entropy"]
    asked = options("linear", tables=["memory"], subjects=few, memory_shapes=[(128, 16, 40)])
    found = jobs(LINEAR.specs(asked), asked)
    assert [job.arguments["specs"][0]["subjects"] for job in found] == [(name,) for name in few]
    (one,) = memory(found[0].arguments["specs"])
    if "OSError" in (one[OURS].error or ""):
        pytest.skip(one[OURS].error)
    assert one[OURS].error is None
    assert one[OURS].ratios["logits"] >= 0


def bars_of(run):
    """The figures of the suite's bars, by title; None where there is no case."""
    found = zip(BARS, evaluate(run, BARS), strict=True)
    return {
        bar.title: (findings[0].value, findings[0].met) if findings else None
        for bar, findings in found
        if (bar.suite, bar.device) == ("linear", run.device)
    }


def test_what_the_fused_head_has_to_reach():
    sizes = {"rows": 2048, "hidden": 512, "classes": 32000}
    with_chunks = measured("linear_torch_chunked", linear_fused=1.7)
    main = case(measured("linear_fused", products=1.06), with_chunks, **sizes)
    extra = case(measured("linear_fused", logits=216 / 250), table="memory", **sizes)
    assert bars_of(results(main, extra, suite="linear")) == {
        "fused head / products": (1.06, False),
        "fused head: extra memory / logits": (216 / 250, True),
        "F.linear_cross_entropy, chunked / fused head": (1.7, False),
    }
    too_much = replace(extra, measurements=[measured("linear_fused", logits=217 / 250)])
    assert not bars_of(results(too_much, suite="linear"))["fused head: extra memory / logits"][1]


def test_what_the_fused_head_has_to_reach_on_a_gpu():
    sizes = {"rows": 8192, "hidden": 4096, "classes": 128256, "dtype": "bfloat16"}
    run = gpu_results(on_gpu(case(measured("linear_fused", products=1.1), **sizes)))
    assert bars_of(replace(run, suite="linear")) == {"GPU: fused head / products": (1.1, True)}


def test_there_is_no_case_of_a_head_that_is_not_fused():
    assert set(bars_of(results(case(measured(OURS)), suite="linear")).values()) == {None}


def test_a_spec_survives_the_way_to_its_process():
    (one,) = memory([asdict(replace(spec(OURS), measured="memory"))])
    assert (one.problem, one.ours, one.roof) == (TINY, OURS, "products")
