import sys
import types
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from anl_kernels.linear.chunks import CHUNK_BYTES
from benchmarks import tables
from benchmarks.cases import memory, timed
from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.linear import BY_CHUNK, fused, fused_narrow
from benchmarks.gate import gate
from benchmarks.inputs import make_inputs
from benchmarks.problems import Problem
from benchmarks.run import jobs
from benchmarks.suite import Spec
from benchmarks.suites.linear import LINEAR, MAIN, OURS
from benchmarks.targets import evaluate
from benchmarks.timing import Budget
from tests.benchmarks.records import case, gpu_results, measured, on_gpu, options, results
from tests.benchmarks.steps import loss_and_gradients
from tests.helpers import error

TINY = Problem(24, 40, hidden=16)
BUDGET = Budget(seconds=0.01, max_rounds=2)
ANL = [
    "linear_fused", "linear_fused_narrow", *BY_CHUNK, "linear_unfused", "linear_careful",
    "linear_compiled",
]  # fmt: skip
CROSS_ENTROPY = ["linear_torch", "linear_torch_chunked"]


@pytest.fixture
def inputs():
    return make_inputs(TINY, copies=2)


@pytest.fixture
def uncompiled(monkeypatch):
    """What is given to compilers, without them."""
    monkeypatch.setattr("benchmarks.contenders.base.compiled_alone", lambda criterion: criterion)


def spec(*contenders, problem=TINY):
    return Spec("main", problem, contenders, roofline="products", ours=OURS)


def test_sizes_are_rows_hidden_and_classes():
    sizes = {"shapes": [(8, 16, 32)], "chunk_shapes": [(7, 8, 9)], "memory_shapes": [(4, 5, 6)]}
    specs = LINEAR.specs(options("linear", **sizes))
    assert [(s.table, s.problem.shape) for s in specs] == [
        ("main", "8 x 16 x 32"),
        ("chunks", "7 x 8 x 9"),
        ("memory", "4 x 5 x 6"),
    ]
    main, by_chunk, extra_memory = specs
    assert (main.problem.rows, main.problem.hidden, main.problem.classes) == (8, 16, 32)
    for timed_spec in (main, by_chunk):
        assert (timed_spec.roofline, timed_spec.floor, timed_spec.ours) == ("products", 1.0, OURS)
    assert "products" not in extra_memory.contenders
    assert (extra_memory.measured, extra_memory.regime) == ("memory", "default")


def test_a_gpu_has_its_own_peers_and_dtype():
    specs = LINEAR.specs(options("linear", "cuda"))
    assert {s.problem.dtype for s in specs} == {"bfloat16"}
    assert all(s.contenders == MAIN for s in specs if s.table == "main")
    on_cpu = LINEAR.specs(options("linear"))[0].contenders
    assert not {"linear_quack", "linear_fused_narrow"} & set(on_cpu)


@pytest.mark.parametrize(("device", "least", "most"), [("cpu", 8, 256), ("cuda", 64, 1024)])
def test_chunks_are_compared_about_the_default_of_the_device(device, least, most):
    (first, *_) = (s for s in LINEAR.specs(options("linear", device)) if s.table == "chunks")
    sizes = [name for name in first.contenders if name in BY_CHUNK]
    assert first.contenders == (OURS, "products", *sizes)
    assert (sizes[0], sizes[-1]) == (f"linear_fused_{least}mib", f"linear_fused_{most}mib")
    assert least << 20 < CHUNK_BYTES[device] < most << 20


@pytest.mark.parametrize("name", BY_CHUNK)
def test_a_contender_has_chunks_of_its_size(name, inputs, monkeypatch):
    asked = {}

    def robust_loss(hidden, weight, target, terms, **keywords):
        asked.update(keywords)
        return (hidden.sum() + weight.sum()).square()

    monkeypatch.setattr("anl_kernels.linear_robust_loss", robust_loss)
    CONTENDERS[name].build(inputs)(0)()
    mebibytes = asked.pop("chunk_bytes") >> 20
    assert (f"linear_fused_{mebibytes}mib", asked) == (name, {})


def test_narrow_sums_are_of_the_dtype_of_the_weight(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "anl_kernels.linear_robust_loss", lambda *a, **keywords: seen.append(keywords)
    )
    fused_narrow(*make_inputs(replace(TINY, dtype="bfloat16"), copies=1).leaves[0], None)
    assert seen == [{"accum_dtype": torch.bfloat16}]


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


def test_the_roofline_is_the_three_products(inputs):
    hidden, weight = (leaf.detach() for leaf in inputs.leaves[1])
    logits, of_hidden, of_weight = CONTENDERS["products"].build(inputs)(1)()
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
    errors = {m.contender: m.error for m in case.measurements}
    assert (errors.pop(OURS), errors.pop("products")) == (None, None)
    assert errors["linear_torch"].startswith("AttributeError: ")
    assert "linear_cross_entropy" in errors["linear_torch"]
    assert errors["linear_liger"].startswith("ModuleNotFoundError: ")
    assert errors["linear_cce"].startswith("ModuleNotFoundError: ")


def test_others_are_divided_by_ours_and_by_the_roofline():
    case = timed(spec(OURS, "products", "linear_unfused_cross_entropy"), BUDGET)
    assert case.ours == OURS
    for measurement in case.measurements:
        assert case.over_ours(measurement) > 0
        assert case.share_of_roofline(measurement) > 0
        assert case.gigabytes_per_second(measurement) is None
    assert case.over_ours(case[OURS]) == 1
    assert case.share_of_roofline(case["products"]) == 1


def test_arithmetic_per_second():
    one = replace(
        case(measured("products"), rows=1000, hidden=500, classes=2000), roofline="products"
    )
    assert one.teraflops_per_second(one["products"]) == pytest.approx(3e-3 / 1e-3)
    assert one.teraflops_per_second(one["linear_fused"]) is None
    assert case(measured("copy")).teraflops_per_second(measured("copy")) is None
    (heading, row) = (
        line.split("|")
        for line in tables.details(results(one, suite="linear")).splitlines()
        if line.startswith(("| contender", "| PRODUCTS"))
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gate_is_green_for_every_form_of_the_fused_head(dtype, monkeypatch):
    """Chunks of a few rows, since those of the default would hold all of them."""
    monkeypatch.setattr("anl_kernels.linear.chunks.rows_of_chunk", lambda *sizes: 5)
    forms = OURS, "linear_fused_narrow", BY_CHUNK[0]
    checks = list(gate([spec(*forms, problem=replace(TINY, dtype=dtype))]))
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == 3 * len(forms)


@pytest.mark.parametrize("leaf", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gate_is_red_where_one_gradient_is_wrong(leaf, dtype, monkeypatch):
    def wrong(*tensors):
        tensors = list(tensors)
        exact = tensors[leaf]
        tensors[leaf] = exact.detach() + 1.05 * (exact - exact.detach())
        return fused(*tensors)

    monkeypatch.setitem(CONTENDERS, OURS, replace(CONTENDERS[OURS], criterion=wrong))
    checks = list(gate([spec(OURS, problem=replace(TINY, dtype=dtype))]))
    assert [check.passed for check in checks] == [True, leaf != 0, leaf != 1]


def test_memory_is_measured_in_a_process_for_each_contender():
    few = [OURS, "linear_unfused_cross_entropy"]
    asked = options("linear", tables=["memory"], contenders=few, memory_shapes=[(128, 16, 40)])
    found = jobs(LINEAR.specs(asked), asked)
    assert [job.arguments["specs"][0]["contenders"] for job in found] == [(name,) for name in few]
    (one,) = memory(found[0].arguments["specs"])
    if "OSError" in (one[OURS].error or ""):
        pytest.skip(one[OURS].error)
    assert one[OURS].error is None
    assert one[OURS].ratios["logits"] >= 0


def held(run):
    """The figures of the suite's targets, by title; None where there is no case."""
    return {
        target.title: (findings[0].value, findings[0].met) if findings else None
        for target, findings in evaluate(run, LINEAR.targets).items()
    }


def test_what_the_fused_head_has_to_reach():
    sizes = {"rows": 2048, "hidden": 512, "classes": 32000}
    times = {"linear_torch_chunked": 1.7, "linear_careful": 1.0, "linear_official": 0.9}
    memory = {"linear_torch_chunked": 0.8, "linear_careful": 7.0, "linear_official": 6.9}
    ours = 216 / 250
    main = case(
        measured(OURS, products=1.06),
        *(measured(name, linear_fused=factor) for name, factor in times.items()),
        **sizes,
    )
    extra = case(
        measured(OURS, logits=ours),
        *(measured(name, logits=factor * ours) for name, factor in memory.items()),
        table="memory",
        **sizes,
    )
    chunked, careful, official = (
        f"{what} / fused head"
        for what in (
            "F.linear_cross_entropy, chunked",
            "head, then well-written ANL",
            "head, then official ANL",
        )
    )
    assert held(results(main, extra, suite="linear")) == {
        "fused head / products": (1.06, False),
        "fused head: extra memory / logits": (ours, True),
        chunked: (1.7, False),
        f"{chunked}: extra memory": (pytest.approx(0.8), False),
        careful: (1.0, True),
        f"{careful}: extra memory": (pytest.approx(7.0), True),
        official: (0.9, False),
        f"{official}: extra memory": (pytest.approx(6.9), False),
    }
    too_much = replace(extra, measurements=[measured("linear_fused", logits=217 / 250)])
    assert not held(results(too_much, suite="linear"))["fused head: extra memory / logits"][1]


def test_what_the_fused_head_has_to_reach_on_a_gpu():
    sizes = {"rows": 8192, "hidden": 4096, "classes": 128256, "dtype": "bfloat16"}
    gradients = (8192 + 128256) * 4096 * 2 / 2**20
    logits = 8192 * 128256 * 2 / 2**20
    memory = "GPU: fused head, narrow sums: extra memory / logits"
    for beside, fits in ((511, True), (513, False)):
        narrow = measured("linear_fused_narrow", logits=(gradients + beside) / logits)
        run = gpu_results(on_gpu(case(measured("linear_fused", products=1.1), narrow, **sizes)))
        assert held(replace(run, suite="linear")) == {
            "GPU: fused head / products": (1.1, True),
            memory: (narrow.ratios["logits"], fits),
        }


def test_memory_of_what_was_not_measured_is_not_known():
    sizes = {"rows": 2048, "hidden": 512, "classes": 32000}
    extra = case(measured(OURS), measured("linear_careful", logits=4.0), table="memory", **sizes)
    found = held(results(extra, suite="linear"))
    assert found["head, then well-written ANL / fused head: extra memory"] == (None, False)


def test_there_is_no_case_of_a_head_that_is_not_fused():
    run = results(case(measured("linear_unfused")), suite="linear")
    assert set(held(run).values()) == {None}


def test_a_spec_survives_the_way_to_its_process():
    (one,) = memory([asdict(replace(spec(OURS), measured="memory"))])
    assert (one.problem, one.ours, one.roofline) == (TINY, OURS, "products")
