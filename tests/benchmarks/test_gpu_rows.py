"""The suite's way through a GPU, on a CPU that plays one."""

import dataclasses
import importlib
import json
import sys
import types
from itertools import pairwise

import pytest

pytest.importorskip("rich")

import torch
import torch.nn.functional as F

from anl_kernels.backends.choice import why_not
from benchmarks import cases, cli, devices
from benchmarks.contenders import CONTENDERS, on_backend, peers
from benchmarks.gate import gate
from benchmarks.inputs import make_inputs
from benchmarks.problems import Problem
from benchmarks.suite import Spec
from benchmarks.suites import choices
from benchmarks.timing import Budget
from tests.benchmarks.fakes import Device
from tests.benchmarks.records import GPU

BUDGET = Budget(seconds=0.05, max_rounds=3)
TINY = Problem(6, 11, "float64", device="cuda")


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


def timed(*contenders, **changes):
    return cases.timed(Spec("main", TINY, contenders, **changes), BUDGET)


def test_a_case(gpu):
    case = timed("ours", "ours_inplace", "copy", "cross_entropy")
    assert (case.problem.device, case.regime) == ("cuda", "default")
    assert case.auto in ("cpu", "reference")
    for measured in case.measurements:
        assert measured.error is None
        assert measured.milliseconds.samples == 3
        assert measured.host_milliseconds.samples == 3
        assert measured.ratios["logits"] == 0.5
    assert gpu.log.count("lead") == 4 * 4  # a round of warming up, and three


def test_the_time_of_the_host(gpu):
    case = timed("ours", "cross_entropy", clock="host", roofline=None)
    for measured in case.measurements:
        assert measured.milliseconds.samples == 3
        assert measured.host_milliseconds is None
    assert "lead" not in gpu.log
    assert gpu.log.count("synchronize") == 2 * (2 + 4)  # around first calls, before the others


def test_a_backend_that_cannot_run_is_a_row_that_says_so(gpu, monkeypatch):
    missing = dataclasses.replace(
        CONTENDERS["cuda"],
        build=lambda inputs: on_backend("none such", CONTENDERS["copy"].build(inputs)),
    )
    monkeypatch.setitem(CONTENDERS, "cuda", missing)
    case = timed("copy", "cuda")
    assert "backend must be one of" in case["cuda"].error
    assert case["copy"].error is None


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("liger", "liger_kernel"),
        ("quack", "quack"),
        ("quack_one_pass", "quack"),
        ("flash_attn", "flash_attn"),
        ("softmax_liger", "liger_kernel"),
        ("softmax_quack", "quack"),
    ],
)
def test_a_peer_that_is_not_installed_is_a_row_that_says_so(name, module, gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    case = timed("copy", name)
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
    inputs = make_inputs(Problem(6, 11), copies=2)
    before = inputs.logits[0].detach().clone()
    prepare = CONTENDERS["liger"].build(inputs)
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
    inputs = make_inputs(Problem(6, 11), copies=1)
    CONTENDERS["quack"].build(inputs)(0)()
    CONTENDERS["quack_one_pass"].build(inputs)(0)()
    assert calls == ["mean", True]


def test_the_mean_of_flash_attn_is_taken_outside(monkeypatch):
    def cross_entropy_loss(logits, labels):
        return F.cross_entropy(logits, labels, reduction="none"), None

    package(monkeypatch, "flash_attn.ops.triton.cross_entropy",
            cross_entropy_loss=cross_entropy_loss)  # fmt: skip
    inputs = make_inputs(Problem(6, 11), copies=1)
    CONTENDERS["flash_attn"].build(inputs)(0)()


def test_the_official_code_leaves_room(monkeypatch):
    wanted = 8192 * 131072 * peers.official_bytes_of_logit(2)
    assert wanted == 32 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 2 * wanted))
    peers._leave_room(wanted)
    with pytest.raises(MemoryError, match="needs about 32 GiB beside its inputs"):
        peers._leave_room(wanted + 1)


def test_inputs_that_do_not_fit_are_rows_that_say_so(gpu, monkeypatch):
    def full(problem):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")

    monkeypatch.setattr("benchmarks.cases.make_inputs", full)
    case = timed("ours", "copy")
    assert [m.error for m in case.measurements] == [
        "the inputs do not fit: OutOfMemoryError: CUDA out of memory. Tried to allocate 8.00 GiB."
    ] * 2


def test_several_borrowers_never_meet_what_another_wrote():
    inputs = make_inputs(Problem(2, 3), copies=2)
    lent = []
    for _ in range(4):
        lent.append(inputs.borrow())
        assert torch.equal(lent[-1], inputs.logits[0])
        lent[-1].zero_()
    # Never the one that has just been restored.
    assert all(one is not other for one, other in pairwise(lent))


def test_one_spare_is_restored_where_there_is_no_other():
    inputs = make_inputs(Problem(2, 3), copies=1)
    for _ in range(2):
        assert torch.equal(inputs.borrow().clone(), inputs.logits[0])
        inputs.spare[0].zero_()


def some_backend():
    return "cpu" if why_not("cpu") is None else "reference"


def test_terms_on_a_named_backend(gpu):
    case = timed("ours", "GCE", "copy", backend=some_backend())
    assert case.backend == some_backend()
    assert {m.error for m in case.measurements} == {None}


def test_the_gate_checks_whole_problems_on_the_device(gpu, monkeypatch):
    monkeypatch.setattr("benchmarks.gate.CHUNK_ELEMENTS", 7 * 300)
    problem = Problem(20, 300, "bfloat16", device="cuda")
    specs = [
        Spec("main", problem, ("ours", "ours_inplace", "copy")),
        Spec("terms", problem, ("ours", "GCE"), backend=some_backend()),
    ]
    checks = list(gate(specs))
    assert [check.what for check in checks if not check.passed] == []
    assert len(checks) == 2 * 4
    assert f"on {some_backend()}, 20 x 300 bfloat16" in checks[-1].what


def test_backends_that_cannot_run_are_not_checked(gpu, monkeypatch):
    monkeypatch.setattr("benchmarks.gate.runs", lambda name: name == "auto")
    specs = [Spec("main", TINY, ("ours", "triton", "cuda_inplace"))]
    assert len(list(gate(specs))) == 2


def test_what_does_not_fit_is_red(gpu, monkeypatch):
    def full(problem, copies):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("benchmarks.gate.make_inputs", full)
    (check,) = gate([Spec("main", TINY, ("ours",))])
    assert not check.passed
    assert "anl_kernels, 6 x 11 float64 x3: OutOfMemoryError" in check.what


def test_terms_are_measured_on_every_gpu_backend_that_runs(monkeypatch):
    monkeypatch.setattr(choices, "runs", lambda name: name == "cuda")
    assert choices.library_backends("cuda") == ["cuda"]
    monkeypatch.setattr(choices, "runs", lambda name: False)
    assert choices.library_backends("cuda") == ["auto"]
    assert choices.library_backends("cpu") == ["auto"]


def test_a_run(gpu, monkeypatch, tmp_path, capsys):
    """Through the command line; its jobs run in this process, where the stand-in is."""

    def run_job(job, threads, limit):
        module, _, name = job.function.partition(":")
        function = getattr(importlib.import_module(module), name)
        return map(dataclasses.asdict, function(**job.arguments))

    monkeypatch.setattr("benchmarks.run.run_job", run_job)
    monkeypatch.setattr("benchmarks.environment.describe_gpu", lambda: GPU)
    stand_in = devices.DEVICES["cuda"]
    monkeypatch.setitem(
        devices.DEVICES, "cuda", dataclasses.replace(stand_in, why_not=lambda: None)
    )
    monkeypatch.setattr(choices, "runs", lambda name: name == "auto")
    arguments = "rows --device cuda --shapes 6x11 --typical-shape 6x11 --rounds 2"
    asked = (
        "--dtypes float32 --tables main terms --contenders ours ours_inplace copy official liger"
    )
    out = tmp_path / "{device}"
    assert cli.main([*f"{arguments} {asked} --targets --out".split(), str(out)]) == 0
    record = json.loads((tmp_path / "nvidia-x100-80-gb" / "rows.json").read_text())
    assert record["environment"]["machine"]["gpu"] == GPU
    assert "cuda" in record["environment"]["versions"]
    assert record["backend"] == "auto"
    assert [(case["table"], case["problem"]["device"]) for case in record["cases"]] == [
        ("main", "cuda"),
        ("terms", "cuda"),
    ]
    printed = capsys.readouterr().out
    assert "## ANL-CE, float32, sigma 3" in printed
    assert "GPU: copy / ours, float32" in printed
