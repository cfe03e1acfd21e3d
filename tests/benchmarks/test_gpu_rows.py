"""The suite's way through a GPU, on a CPU that plays one."""

import dataclasses
import importlib
import json
import sys
import types

import pytest

pytest.importorskip("rich")

import torch
import torch.nn.functional as F

from anl_kernels.backends.selection import why_not
from benchmarks import cli, devices
from benchmarks.inputs import Problem, make_inputs
from benchmarks.rows import measure, suite
from benchmarks.rows.cases import timed
from benchmarks.subjects import SUBJECTS, on_backend, others
from tests.benchmarks.fakes import Device
from tests.benchmarks.records import GPU

BUDGET = {"seconds": 0.05, "max_rounds": 3}


@pytest.fixture
def gpu(monkeypatch):
    """Tensors stay on the CPU."""
    fake = Device().install(monkeypatch)
    fake.tick = 1.0

    def peak_growth(step):
        step()
        return 4 * 6 * 11  # bytes: half of the logits

    stand_in = dataclasses.replace(
        devices.DEVICES["cuda"],
        tensors="cpu",
        cache_bytes=lambda: 1 << 10,
        peak_growth=peak_growth,
        release=lambda: None,
    )
    monkeypatch.setitem(devices.DEVICES, "cuda", stand_in)
    monkeypatch.setattr(devices.CudaClock, "warm_up", 0.0)
    return fake


def main(subjects, **changes):
    arguments = {
        "regime": "default",
        "shape": (6, 11),
        "dtypes": ["float64"],
        "scales": [3.0],
        "subjects": subjects,
        "budget": BUDGET,
        "device": "cuda",
    }
    (case,) = measure.main(**arguments | changes)
    return case


def test_a_case(gpu):
    case = main(["ours", "ours_inplace", "copy", "cross_entropy"])
    assert (case.device, case.regime) == ("cuda", "default")
    assert case.auto in ("cpu", "reference")
    for measured in case.measurements:
        assert measured.error is None
        assert measured.milliseconds.samples == 3
        assert measured.host_milliseconds.samples == 3
        assert measured.ratios["logits"] == 0.5
    assert gpu.log.count("lead") == 4 * 4  # a round of warming up, and three


def test_a_backend_that_cannot_run_is_a_row_that_says_so(gpu, monkeypatch):
    missing = dataclasses.replace(
        SUBJECTS["cuda"],
        build=lambda inputs: on_backend("none such", SUBJECTS["copy"].build(inputs)),
    )
    monkeypatch.setitem(SUBJECTS, "cuda", missing)
    case = main(["copy", "cuda"])
    assert "backend must be one of" in case["cuda"].error
    assert case["copy"].error is None


@pytest.mark.parametrize(
    ("name", "module"),
    [("liger", "liger_kernel"), ("quack", "quack"), ("quack_one_pass", "quack")],
)
def test_a_peer_that_is_not_installed_is_a_row_that_says_so(name, module, gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    case = main(["copy", name])
    assert module in case[name].error
    assert case["copy"].error is None


def package(monkeypatch, path, **functions):
    """A package of which only these functions are known."""
    parts = path.split(".")
    for end in range(1, len(parts) + 1):
        module = types.ModuleType(".".join(parts[:end]))
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, function in functions.items():
        setattr(module, name, function)


def test_liger_gets_logits_of_its_own(monkeypatch):
    seen = []

    def liger_cross_entropy(logits, target):
        assert logits.requires_grad
        seen.append(logits.detach().clone())
        loss = F.cross_entropy(logits, target)
        logits.data.zero_()
        return loss

    package(monkeypatch, "liger_kernel.transformers.functional",
            liger_cross_entropy=liger_cross_entropy)  # fmt: skip
    inputs = make_inputs(Problem(6, 11, torch.float32), copies=2)
    before = inputs.logits[0].detach().clone()
    prepare = SUBJECTS["liger"].build(inputs)
    for i in (0, 1, 0, 0):
        prepare(i)()
    assert all(torch.equal(logits, before) for logits in [*seen, *inputs.logits])


def test_quack_is_asked_for_a_mean_and_for_a_gradient(monkeypatch):
    calls = []

    def cross_entropy(x, target, *, reduction):
        calls.append(reduction)
        return F.cross_entropy(x, target, reduction=reduction)

    def cross_entropy_fwd(x, target, *, return_dx):
        assert not x.requires_grad
        calls.append(return_dx)

    package(monkeypatch, "quack.cross_entropy",
            cross_entropy=cross_entropy, cross_entropy_fwd=cross_entropy_fwd)  # fmt: skip
    inputs = make_inputs(Problem(6, 11, torch.float32), copies=1)
    SUBJECTS["quack"].build(inputs)(0)()
    SUBJECTS["quack_one_pass"].build(inputs)(0)()
    assert calls == ["mean", True]


def test_the_official_code_leaves_room(monkeypatch):
    logits = torch.empty((8192, 131072), device="meta", dtype=torch.bfloat16)
    wanted = others.official_bytes(logits)
    assert wanted == 32 * 8192 * 131072
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 2 * wanted))
    others._leave_room(wanted)
    with pytest.raises(MemoryError, match="needs about 32 GiB beside its inputs"):
        others._leave_room(wanted + 1)


def test_inputs_that_do_not_fit_are_rows_that_say_so(gpu, monkeypatch):
    def full(problem):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")

    monkeypatch.setattr(timed.__module__ + ".make_inputs", full)
    case = main(["ours", "copy"])
    assert [m.error for m in case.measurements] == [
        "the inputs do not fit: OutOfMemoryError: CUDA out of memory. Tried to allocate 8.00 GiB."
    ] * 2


def test_several_borrowers_never_meet_what_another_wrote():
    inputs = make_inputs(Problem(2, 3, torch.float32), copies=2)
    for i in (0, 1, 1, 0):
        spare = inputs.borrow(i)
        assert torch.equal(spare, inputs.logits[i])
        spare.zero_()


def test_terms_on_a_named_backend(gpu):
    shape, dtypes = (6, 11), ["float32"]
    name = "cpu" if why_not("cpu") is None else "reference"
    (case,) = measure.terms("default", shape, dtypes, BUDGET, device="cuda", backend=name)
    assert case.backend == name
    assert {m.error for m in case.measurements} == {None}


def test_the_gate_checks_whole_problems_on_the_device(gpu, monkeypatch):
    monkeypatch.setattr("benchmarks.gate.CHUNK_ELEMENTS", 7 * 300)
    name = "cpu" if why_not("cpu") is None else "reference"
    checks = list(
        measure.gate([(20, 300)], ["bfloat16"], [3.0], [], device="cuda", backends=["auto", name])
    )
    assert [check.what for check in checks if not check.passed] == []
    assert len(checks) == 2 * 4
    assert f"20 x 300 torch.bfloat16 on {name}" in checks[-1].what


def test_what_does_not_fit_is_red(gpu, monkeypatch):
    def full(problem, backend):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(measure, "check_anl", full)
    (check,) = measure.gate([(20, 300)], ["float32"], [3.0], [], device="cuda")
    assert not check.passed
    assert "(20, 300): OutOfMemoryError" in check.what


def test_terms_are_measured_on_every_gpu_backend_that_runs(monkeypatch):
    monkeypatch.setattr(suite, "_runs", lambda name: name == "cuda")
    assert suite.term_backends("cuda") == ["cuda"]
    monkeypatch.setattr(suite, "_runs", lambda name: False)
    assert suite.term_backends("cuda") == ["auto"]
    assert suite.term_backends("cpu") == ["auto"]


def test_a_run(gpu, monkeypatch, tmp_path, capsys):
    """Through the command line; its jobs run in this process, where the stand-in is."""

    def run_job(job, threads, limit):
        module, _, name = job.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        return map(dataclasses.asdict, function(**job.arguments))

    monkeypatch.setattr(cli, "run_job", run_job)
    monkeypatch.setattr("benchmarks.environment.describe_gpu", lambda: GPU)
    stand_in = devices.DEVICES["cuda"]
    monkeypatch.setitem(
        devices.DEVICES, "cuda", dataclasses.replace(stand_in, why_not=lambda: None)
    )
    monkeypatch.setattr(suite, "_runs", lambda name: name == "auto")
    arguments = "rows --device cuda --shapes 6x11 --typical-shape 6x11 --rounds 2"
    dtypes = "--dtypes float32 --term-dtypes float32"
    subjects = "--subjects ours ours_inplace copy official liger"
    out = tmp_path / "rows-{device}.json"
    assert cli.main([*f"{arguments} {dtypes} {subjects} --bars --out".split(), str(out)]) == 0
    record = json.loads((tmp_path / "rows-nvidia-x100-80-gb.json").read_text())
    assert record["environment"]["machine"]["gpu"] == GPU
    assert "cuda" in record["environment"]["versions"]
    assert record["backend"] == "auto"
    assert [(case["table"], case["device"]) for case in record["cases"]] == [
        ("main", "cuda"),
        ("terms", "cuda"),
    ]
    printed = capsys.readouterr().out
    assert "## ANL-CE, float32: % of the copy's bandwidth (ms)" in printed
    assert "GPU: copy / ours, float32" in printed
