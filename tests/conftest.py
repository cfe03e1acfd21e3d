import os

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

import anl_kernels as ak
from anl_kernels.backends.selection import why_not
from tests.interpreter import act_like_hardware

if not GPU and why_not("triton") is None:
    act_like_hardware()


def pytest_collection_modifyitems(items):
    for item in items:
        if not GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm device"))


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda" if GPU else "cpu")


@pytest.fixture(params=["reference", "triton"])
def backend(request):
    """Every call in the test runs on this backend."""
    reason = why_not(request.param)
    if reason:
        pytest.skip(reason)
    with ak.use_backend(request.param):
        yield request.param


@pytest.fixture
def triton_backend():
    if why_not("triton"):
        pytest.skip(why_not("triton"))
    with ak.use_backend("triton"):
        yield "triton"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory holds NaN, so that an output which is not written shows."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
