import re

import pytest
import torch

import anl_kernels as ak
from anl_kernels.terms import REGISTRY
from benchmarks import run
from benchmarks.cases import timed
from benchmarks.contenders import CONTENDERS, loss_and_gradient
from benchmarks.contenders.formulas import (
    careful_anl,
    careful_apl,
    official_anl,
    official_anl_by_rows,
    official_apl,
)
from benchmarks.contenders.library import term_instances
from benchmarks.gate import gate
from benchmarks.inputs import MAX_COPIES, copies_to_flush, make_inputs
from benchmarks.jobs import run_job
from benchmarks.memory import peak_growth
from benchmarks.problems import PHASES, Problem
from benchmarks.results import case_from
from benchmarks.suite import Spec
from benchmarks.suites import SUITES
from benchmarks.timing import Budget
from tests.benchmarks.records import options
from tests.helpers import error

NEEDS_A_GPU = {"liger"}


def contenders_of(suite, device="cpu"):
    """What a suite measures, in its order."""
    specs = SUITES[suite].specs(options(suite, device))
    return dict.fromkeys(name for spec in specs for name in spec.contenders)


@pytest.fixture
def inputs(device):
    return make_inputs(Problem(6, 11, "float64", 5.0, device.type), copies=2)


def gradient(criterion, inputs):
    logits = inputs.logits[0]
    loss = criterion(logits, inputs.target)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize(
    ("peer", "terms", "tolerance"),
    [
        (official_anl, 5.0 * ak.NCE() + 5.0 * ak.NNCE(), 1e-12),
        (official_anl_by_rows, 5.0 * ak.NCE() + 5.0 * ak.NNCE(), 1e-12),
        (careful_anl, 5.0 * ak.NCE() + 5.0 * ak.NNCE(), 1e-12),
        (careful_apl, ak.NCE() + ak.MAE(), 1e-12),
        # It takes no probability for less than 1e-7.
        (official_apl, ak.NCE() + ak.MAE(), 1e-6),
    ],
)
def test_peers_compute_the_same_loss(peer, terms, tolerance, inputs):
    with ak.use_backend("reference"):
        loss, grad = gradient(ak.RobustLoss(terms), inputs)
    by_peer, grad_by_peer = gradient(peer, inputs)
    assert error(by_peer, loss) <= tolerance
    assert error(grad_by_peer, grad) <= tolerance


@pytest.mark.parametrize("suite", SUITES)
def test_every_device_has_the_contenders_that_its_targets_need(suite):
    for target in SUITES[suite].targets:
        there = set(contenders_of(suite, target.device))
        assert {target.contender, target.over} - {None, "logits"} <= there, target.title


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("suite", SUITES)
def test_suites_measure_what_there_is(suite, device):
    for quick in (False, True):
        asked = options(suite, device, quick)
        specs = SUITES[suite].specs(asked)
        assert {spec.table for spec in specs} == set(asked.tables)
        for spec in specs:
            assert spec.problem.device == device
            assert all(device in CONTENDERS[name].devices for name in spec.contenders)
            assert spec.ours in spec.contenders
            assert spec.measured == "memory" or spec.roofline in (None, *spec.contenders)
        assert len(set(specs)) == len(specs)


def test_triton_runs_on_triton(inputs, triton_backend):
    for name in ("triton", "triton_inplace"):
        CONTENDERS[name].build(inputs)(0)()
    _, wanted = gradient(ak.anl, inputs)
    torch.testing.assert_close(inputs.spare[0], wanted)


# Of given logits; linear heads and models have tests of their own.
ON_LOGITS = dict.fromkeys(
    name for suite in ("rows", "softmax", "overhead", "scaling") for name in contenders_of(suite)
)


@pytest.mark.parametrize("name", [n for n in ON_LOGITS if not re.search("compiled|import", n)])
def test_contenders_leave_the_inputs_as_they_found_them(name, inputs):
    if name in NEEDS_A_GPU:
        pytest.skip("needs a GPU")
    before = inputs.logits[0].detach().clone()
    prepare = CONTENDERS[name].build(inputs)
    for i in (0, 1, 0):
        prepare(i)()
    assert all(torch.equal(logits, before) and logits.grad is None for logits in inputs.logits)


def test_an_import_is_timed_in_processes_of_its_own(monkeypatch):
    monkeypatch.setattr("benchmarks.contenders.library.IMPORT", "print(0.25)")
    (spec,) = SUITES["overhead"].specs(options("overhead", tables=["import"]))
    case = timed(spec, Budget(0.001, 1))
    (measured,) = case.measurements
    assert (measured.milliseconds.median, measured.milliseconds.samples) == (250, 7)
    assert str(case).startswith("no logits, default")


@pytest.mark.parametrize("phase", PHASES)
def test_parts_of_a_step(phase):
    seen = []

    def criterion(logits, target):
        loss = (logits * 1.0).sum()
        if torch.is_grad_enabled():
            loss.register_hook(lambda gradient: seen.append("backward"))
        seen.append("forward")
        return loss

    inputs = make_inputs(Problem(2, 3, phase=phase), copies=1)
    step = loss_and_gradient(criterion, inputs)(0)
    before = list(seen)
    step()
    wanted = {
        "both": ([], ["forward", "backward"]),
        "forward": ([], ["forward"]),
        "backward": (["forward"], ["backward"]),
        "inference": ([], ["forward"]),
    }
    assert (before, seen[len(before) :]) == wanted[phase]
    assert inputs.logits[0].grad is None


def test_what_overwrites_the_logits_has_no_parts():
    inputs = make_inputs(Problem(2, 3, phase="backward"), copies=1)
    with pytest.raises(ValueError, match="forward and backward at once"):
        CONTENDERS["ours_inplace"].build(inputs)


def test_in_place_works_on_the_spare_memory(inputs, triton_backend):
    prepare = CONTENDERS["ours_inplace"].build(inputs)
    _, wanted = gradient(ak.anl, inputs)
    prepare(0)()
    torch.testing.assert_close(inputs.spare[0], wanted)
    prepare(1)()
    assert torch.equal(inputs.spare[0], inputs.logits[0])
    torch.testing.assert_close(inputs.spare[1], wanted)


def test_copies_flush_the_cache():
    assert copies_to_flush(1 << 20, 1 << 25) == 128
    assert copies_to_flush(1 << 30, 1 << 25) == 1
    assert copies_to_flush(1, 1 << 25) == MAX_COPIES


def test_every_term_is_a_contender():
    assert set(term_instances()) == set(REGISTRY) <= set(CONTENDERS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "contenders",
    [("ours", "ours_inplace"), ("ours_apl",), tuple(REGISTRY), ("softmax",)],
    ids=lambda names: names[0],
)
def test_the_gate_is_green_where_the_library_is_right(contenders, dtype):
    spec = Spec("main", Problem(8, 300, dtype, 5.0), (*contenders, "copy"))
    checks = list(gate([spec, spec]))  # the same again is not checked again
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == 2 * len(contenders)


def test_the_gate_is_red_where_it_is_wrong(monkeypatch):
    def wrong(logits, target, *args, **kwargs):
        return logits.square().mean()

    monkeypatch.setattr("anl_kernels.losses.robust_loss", wrong)
    spec = Spec("main", Problem(8, 300, "float32", 5.0), ("ours", "ours_inplace"))
    checks = list(gate([spec]))
    assert len(checks) == 4
    assert not any(check.passed for check in checks)


def test_anl_of_ten_million_classes():
    """The papers' smallest probability would be too large for them."""
    spec = Spec("classes", Problem(2, 10_000_000), ("ours", "ours_inplace"))
    checks = list(gate([spec]))
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == 4


def test_what_refuses_is_red():
    (check,) = gate([Spec("main", Problem(4, 10_000_000), ("ours_function",))])
    assert not check.passed
    assert "min_prob must be below" in check.what


def test_peak_growth():
    try:
        growth = peak_growth(lambda: torch.ones(1 << 24))
    except OSError as reason:
        pytest.skip(str(reason))
    assert growth == pytest.approx(1 << 26, rel=0.05)


@pytest.mark.parametrize(("rows", "classes"), [(32, 100_000), (100, 100_000)])
def test_memory_that_the_library_keeps_is_counted(rows, classes):
    """A gradient of 4 MiB and more is kept for the next one, which has to be seen all the same."""
    job = run.jobs(
        [Spec("memory", Problem(rows, classes), ("ours",), roofline=None, measured="memory")],
        options("rows"),
    )[0]
    (record,) = run_job(job, threads=None)
    measured = case_from(record)["ours"]
    if "OSError" in (measured.error or ""):
        pytest.skip(measured.error)
    assert measured.error is None
    assert 0.99 <= measured.ratios["logits"] <= 1.2
