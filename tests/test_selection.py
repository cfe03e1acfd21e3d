"""Which backend runs, and the report of what can."""

import os
import subprocess
import sys

import pytest
import torch

import anl_kernels as ak
from anl_kernels.backends import choice
from anl_kernels.backends.choice import choose_backend
from anl_kernels.settings import settings
from tests.backends import operators_of

GPU = torch.cuda.is_available()
LOGITS, TARGET = torch.zeros(2, 3), torch.tensor([0, 1])


@pytest.fixture
def no_interpreter(machine):
    """As on a machine where Triton does not interpret."""
    machine.setattr(choice, "interpreting", lambda: False)


def with_backend(name, **changes):
    """The table of backends with another answer of one of them."""
    return choice.BACKENDS | {name: choice.BACKENDS[name]._replace(**changes)}


def requested():
    return settings.backend


def test_auto_is_the_default():
    assert requested() == "auto"
    assert choose_backend(LOGITS) == "cpu"


def test_nesting_restores(triton_backend):
    assert requested() == "triton"
    with ak.use_backend("reference"):
        assert requested() == "reference"
        with ak.use_backend("auto"):
            assert requested() == "auto"
        assert requested() == "reference"
    assert requested() == "triton"


def test_restored_after_an_exception():
    with pytest.raises(KeyError), ak.use_backend("reference"):
        raise KeyError
    assert requested() == "auto"


def test_a_refused_name_changes_nothing():
    with pytest.raises(ValueError, match="backend"), ak.use_backend("nope"):
        pass
    assert requested() == "auto"


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"(?s)backend.*triton.*reference.*'cudnn'"):
        ak.use_backend("cudnn").__enter__()


@pytest.mark.skipif(GPU, reason="needs a machine without a GPU")
def test_triton_without_a_gpu_says_why(no_interpreter):
    with pytest.raises(RuntimeError, match=r"(?s)'triton'.*TRITON_INTERPRET"):
        ak.use_backend("triton").__enter__()
    assert requested() == "auto"


@pytest.fixture
def no_cpu_kernels(machine):
    """As after an install without a compiler, in a process that has not warned yet."""
    machine.setattr(choice, "_warned", set())
    reason = "the C++ extension cannot be loaded; build it: pip install ."
    machine.setattr(choice, "BACKENDS", with_backend("cpu", why_not=lambda: reason))


@pytest.mark.skipif(GPU, reason="needs a machine without a GPU")
@pytest.mark.usefixtures("no_cpu_kernels")
def test_auto_without_kernels_warns_once():
    with pytest.warns(RuntimeWarning, match=r"no kernels for cpu tensors.*cannot be loaded.*pip"):
        ak.robust_loss(LOGITS, TARGET, ak.CE())
    ak.robust_loss(LOGITS, TARGET, ak.CE())  # warnings are errors here
    ak.linear_robust_loss(LOGITS, torch.zeros(3, 3), TARGET, ak.CE())


@pytest.mark.usefixtures("no_cpu_kernels")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_who_knows_is_not_warned():
    class OfTheUser(ak.MAE):
        pass

    ak.robust_loss(LOGITS, TARGET, OfTheUser())
    ak.env_report()
    with ak.use_backend("reference"):
        ak.robust_loss(LOGITS, TARGET, ak.CE())
    torch.compiler.reset()
    loss = torch.compile(ak.robust_loss, fullgraph=True, backend="aot_eager")
    assert loss(LOGITS, TARGET, ak.CE()).isfinite()
    assert not choice._warned


def test_triton_never_falls_back(triton_backend, machine):
    """Asked for by name it runs or raises, whatever the tensors are on."""
    table = with_backend("triton", device_type=lambda: "cuda")
    machine.setattr(choice, "BACKENDS", table)
    for call in (
        lambda: ak.robust_loss(LOGITS, TARGET, ak.NCE()),
        lambda: ak.softmax(LOGITS),
        lambda: ak.RobustLoss(ak.CE())(LOGITS, TARGET),
    ):
        with pytest.raises(RuntimeError, match=r"(?s)'triton'.*cpu.*GPU.*TRITON_INTERPRET=1"):
            call()


def test_auto_does_not_interpret(no_interpreter):
    loss = ak.robust_loss(LOGITS, TARGET, ak.CE())
    torch.testing.assert_close(loss, torch.tensor(3.0).log())


@pytest.mark.parametrize("version", ["2.1.0", "3.5.1"])
def test_an_old_triton_is_refused(version, triton_backend, machine):
    machine.setattr("triton.__version__", version)
    with pytest.raises(RuntimeError, match=f"{version}.*too old.*3.6"):
        ak.use_backend("triton").__enter__()


def test_a_missing_triton_is_reported(machine):
    machine.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeError, match=r"cannot be imported.*pip install"):
        ak.use_backend("triton").__enter__()
    assert "pip install" in ak.env_report().backends["triton"]


def test_the_backend_that_is_asked_for_runs(backend, device):
    calls = operators_of(ak.robust_loss, LOGITS.to(device), TARGET.to(device), ak.CE())
    losses = [name for name in calls if name.endswith("::row_loss")]
    assert losses == ([] if backend == "reference" else [f"{backend}::row_loss"])


def test_backward_keeps_the_backend_of_its_forward(triton_backend, device):
    logits = torch.randn(2, 3, device=device, requires_grad=True)
    loss = ak.robust_loss(logits, TARGET.to(device), ak.NCE(), reduction="none")
    with ak.use_backend("reference"):
        loss.sum().backward()
    assert "RowLossFunction" in type(loss.grad_fn).__name__
    assert logits.grad.isfinite().all()


def test_report():
    report = ak.env_report()
    assert report.anl_kernels == ak.__version__
    assert report.torch == torch.__version__
    assert set(report.backends) == {"triton", "cuda", "cpu", "reference"}
    assert report.backends["reference"] == "available"
    assert report.auto["cpu"] == "cpu"
    assert report.devices[0] == "cpu"
    for fact in (ak.__version__, torch.__version__, "backend triton", "backend cuda"):
        assert fact in str(report)
    assert "auto on cpu: cpu" in str(report)


def test_report_names_the_interpreter(triton_backend):
    state = ak.env_report().backends["triton"]
    assert ("interpreter" in state) == choice.interpreting()


@pytest.mark.skipif(GPU, reason="needs a machine without a GPU")
def test_report_says_why_not(no_interpreter):
    assert "no CUDA" in ak.env_report().backends["triton"]


def test_command():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    output = subprocess.run(
        [sys.executable, "-m", "anl_kernels"],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout
    assert f"anl_kernels {ak.__version__}" in output
    assert "backend reference: available" in output
