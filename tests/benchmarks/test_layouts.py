import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak
from benchmarks.cases import memory, timed
from benchmarks.contenders import CONTENDERS
from benchmarks.gate import GATE_BYTES, checked, gate
from benchmarks.inputs import make_inputs
from benchmarks.problems import Problem
from benchmarks.results import case_from
from benchmarks.suite import Spec
from benchmarks.suites.layouts import LAYOUTS, MAIN, MEMORY_FORMATS
from benchmarks.targets import evaluate
from benchmarks.timing import Budget
from tests.benchmarks.records import case, gpu_results, measured, on_gpu, options, results
from tests.benchmarks.steps import loss_and_gradients
from tests.helpers import error

TORCH_FORMATS = {
    "channels_first": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
ANL = ["ours", "ours_compiled", "compiled", "careful"]
ON_CPU = [name for name in MAIN if "cpu" in CONTENDERS[name].devices]


@pytest.fixture(params=MEMORY_FORMATS)
def problem(request):
    return Problem(2 * 5 * 6, 7, grid=(2, 5, 6), layout=request.param)


@pytest.fixture
def inputs(problem):
    return make_inputs(problem, copies=2)


@pytest.fixture
def uncompiled(monkeypatch):
    """What is given to compilers, without them."""
    monkeypatch.setattr("benchmarks.contenders.base.compiled_alone", lambda criterion: criterion)


def has_format(tensor, problem):
    return tensor.is_contiguous(memory_format=TORCH_FORMATS[problem.layout])


def test_sizes_are_batch_classes_and_pixels():
    asked = options("layouts", shapes=[(2, 7, 5, 6)], memory_shapes=[(1, 3, 4, 8)], regime="warm")
    specs = LAYOUTS.specs(asked)
    assert [(s.table, s.problem.dtype, s.problem.shape) for s in specs] == [
        ("main", "float32", "2 x 7 x 5 x 6 channels_first"),
        ("main", "float32", "2 x 7 x 5 x 6 channels_last"),
        ("main", "bfloat16", "2 x 7 x 5 x 6 channels_first"),
        ("main", "bfloat16", "2 x 7 x 5 x 6 channels_last"),
        ("memory", "float32", "1 x 3 x 4 x 8 channels_first"),
        ("memory", "float32", "1 x 3 x 4 x 8 channels_last"),
    ]
    assert {(s.problem.rows, s.problem.classes) for s in specs} == {(60, 7), (32, 3)}
    assert {s.roofline for s in specs if s.table == "main"} == {"copy"}


def test_a_gpu_measures_both_backends():
    (first, *_) = LAYOUTS.specs(options("layouts", "cuda"))
    assert {"triton", "cuda", "copy", "cross_entropy"} <= set(first.contenders)
    assert "liger" not in first.contenders  # takes rows alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_inputs_have_the_layout(problem, dtype):
    inputs = make_inputs(replace(problem, dtype=dtype), copies=2)
    assert inputs.target.shape == (2, 5, 6)
    for logits in (*inputs.logits, *inputs.spare):
        assert logits.shape == (2, 7, 5, 6)
        assert has_format(logits, problem)


def test_both_layouts_hold_the_same_logits(problem):
    other = replace(problem, layout="channels_first")
    assert torch.equal(make_inputs(problem).logits[0], make_inputs(other).logits[0])


def test_what_is_lent_keeps_its_layout(inputs, problem):
    assert inputs.borrow() is inputs.spare[0]
    inputs.spare[0].zero_()
    inputs.borrow()
    assert torch.equal(inputs.spare[0], inputs.logits[0])
    assert has_format(inputs.spare[0], problem)


def test_the_roofline_copies_in_the_order_of_memory(inputs, problem):
    inputs.spare[0].zero_()
    copied = CONTENDERS["copy"].build(inputs)(1)()
    assert copied is inputs.spare[0]
    assert torch.equal(copied, inputs.logits[1])
    assert copied.stride() == inputs.logits[1].stride()


@pytest.mark.parametrize("name", ANL)
def test_all_of_anl_give_the_same(name, inputs, uncompiled):
    loss, (gradient,) = loss_and_gradients(name, inputs)
    wanted, (true,) = loss_and_gradients("official", inputs)
    assert error(loss, wanted) <= 1e-5
    assert error(gradient, true) <= 1e-5


def test_in_place_gives_the_same_in_the_layout_it_found(inputs, problem):
    CONTENDERS["ours_inplace"].build(inputs)(0)()
    _, (true,) = loss_and_gradients("official", inputs)
    assert error(inputs.spare[0], true) <= 1e-5
    assert has_format(inputs.spare[0], problem)


def test_our_gradient_comes_in_the_layout_of_the_logits(inputs, problem):
    _, (gradient,) = loss_and_gradients("ours", inputs)
    assert has_format(gradient, problem)


@pytest.mark.parametrize("name", ["cross_entropy", "compiled_cross_entropy"])
def test_cross_entropy_is_of_every_pixel(name, inputs, uncompiled):
    loss, (gradient,) = loss_and_gradients(name, inputs)
    rows = inputs.logits[0].movedim(1, -1).reshape(-1, 7)
    wanted = F.cross_entropy(rows, inputs.target.reshape(-1))
    torch.testing.assert_close(loss, wanted.detach())
    assert error(gradient, loss_and_gradients("official", inputs)[1][0]) > 0.1


def test_every_contender_is_measured(problem, uncompiled):
    one = timed(Spec("main", problem, tuple(ON_CPU), "warm"), Budget(0.01, 2))
    assert [(m.contender, m.error) for m in one.measurements] == [(name, None) for name in ON_CPU]
    assert one.auto == ak.backends.choice.best("cpu")
    assert all(one.over_ours(m) and one.share_of_roofline(m) for m in one.measurements)
    assert case_from(json.loads(json.dumps(asdict(one)))) == one


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gate_is_green(problem, dtype):
    spec = Spec("main", replace(problem, dtype=dtype), ("ours", "ours_inplace", "copy"))
    checks = list(gate([spec]))
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == 4
    assert all(problem.layout in check.what for check in checks)


def test_the_gate_is_red_where_pixels_are_taken_for_others(problem, monkeypatch):
    def wrong(logits, target):
        return ak.anl(logits, target.flip(2))

    monkeypatch.setitem(CONTENDERS, "ours", replace(CONTENDERS["ours"], criterion=wrong))
    checks = list(gate([Spec("main", problem, ("ours",))]))
    assert [check.passed for check in checks] == [False, False]


@pytest.mark.parametrize("shape", options("layouts").shapes)
def test_the_gate_takes_a_part_of_the_pixels(shape):
    for spec in LAYOUTS.specs(options("layouts", shapes=[shape], tables=["main"])):
        part, whole = checked(spec.problem), spec.problem
        assert part.rows == torch.Size(part.grid).numel()
        assert part.logits_bytes <= GATE_BYTES or part.grid[:-1] == (2, 1)
        assert part.grid[-1] == whole.grid[-1]  # as long rows of pixels as before
        assert (part.classes, part.layout) == (whole.classes, whole.layout)


def test_memory(problem):
    large = replace(problem, classes=64, rows=2 * 128 * 128, grid=(2, 128, 128))
    spec = Spec("memory", large, ("ours",), roofline=None, measured="memory")
    (one,) = memory([asdict(spec)])
    if "OSError" in (one["ours"].error or ""):
        pytest.skip(one["ours"].error)
    assert one["ours"].error is None
    assert one.problem == large
    assert 0.99 <= one["ours"].ratios["logits"] <= 1.1


def test_cross_entropy_is_no_faster():
    slower = case(measured("cross_entropy", ours=1.0), grid=(4, 16, 16))
    faster = case(measured("cross_entropy", ours=0.99), grid=(4, 16, 16))
    other_regime = replace(faster, regime="default")
    on_cpu = results(slower, faster, other_regime, suite="layouts")
    on_a_gpu = replace(gpu_results(on_gpu(slower), on_gpu(faster)), suite="layouts")
    for run in (on_cpu, on_a_gpu):
        (found,) = evaluate(run, LAYOUTS.targets).values()
        assert [(finding.value, finding.met) for finding in found] == [(0.99, False), (1.0, True)]
