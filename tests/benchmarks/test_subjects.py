import pytest
import torch

import anl_kernels as ak
from anl_kernels.terms import REGISTRY
from benchmarks.bounds import BARS
from benchmarks.inputs import MAX_COPIES, Problem, copies_to_flush, make_inputs
from benchmarks.memory import peak_growth
from benchmarks.peers import careful_anl, official_anl
from benchmarks.rows.measure import gate, term_instances
from benchmarks.subjects import SUBJECTS
from tests.helpers import error


@pytest.fixture
def inputs(device):
    return make_inputs(Problem(6, 11, torch.float64, 5.0, device.type), copies=2)


def gradient(criterion, inputs):
    logits = inputs.logits[0]
    loss = criterion(logits, inputs.target)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize(("peer", "tolerance"), [(official_anl, 1e-12), (careful_anl, 1e-5)])
def test_peers_compute_the_same_loss(peer, tolerance, inputs):
    with ak.use_backend("reference"):
        loss, grad = gradient(ak.anl, inputs)
    by_peer, grad_by_peer = gradient(peer, inputs)
    assert error(by_peer, loss) <= tolerance
    assert error(grad_by_peer, grad) <= tolerance


ON_CPU = [name for name, subject in SUBJECTS.items() if "cpu" in subject.devices]


def test_every_device_has_the_subjects_that_its_bars_need():
    for device in ("cpu", "cuda"):
        there = {name for name, subject in SUBJECTS.items() if device in subject.devices}
        for bar in BARS:
            if bar.device == device:
                assert {bar.subject, bar.over} - {None, "logits"} <= there


def test_triton_runs_on_triton(inputs, triton_backend):
    for name in ("triton", "triton_inplace"):
        SUBJECTS[name].build(inputs)(0)()
    _, wanted = gradient(ak.anl, inputs)
    torch.testing.assert_close(inputs.spare[0], wanted)


@pytest.mark.parametrize("name", sorted(set(ON_CPU) - {"compiled"}))
def test_subjects_leave_the_inputs_as_they_found_them(name, inputs):
    before = inputs.logits[0].detach().clone()
    prepare = SUBJECTS[name].build(inputs)
    for i in (0, 1, 0):
        prepare(i)()
    assert all(torch.equal(logits, before) and logits.grad is None for logits in inputs.logits)


def test_in_place_works_on_the_spare_memory(inputs, triton_backend):
    prepare = SUBJECTS["ours_inplace"].build(inputs)
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


def test_every_term_has_an_instance():
    assert set(term_instances()) == set(REGISTRY)


def test_the_gate_is_green_where_the_library_is_right():
    dtypes = ["float32", "bfloat16"]
    checks = list(gate([(8, 300)], dtypes, [5.0], [(8, 300)], dtypes))
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == 2 * (4 + 2 * len(REGISTRY))


def test_the_gate_is_red_where_it_is_wrong(monkeypatch):
    monkeypatch.setattr(ak, "anl", lambda logits, target, inplace=False: logits.square().mean())
    assert not any(check.passed for check in gate([(8, 300)], ["float32"], [5.0], []))


def test_peak_growth():
    try:
        growth = peak_growth(lambda: torch.ones(1 << 24))
    except OSError as reason:
        pytest.skip(str(reason))
    assert growth == pytest.approx(1 << 26, rel=0.05)
