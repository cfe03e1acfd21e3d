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


def _use(name):
    """Run the test on one backend; skip it where that backend, or its device, is not."""
    reason = why_not(name)
    if reason:
        pytest.skip(reason)
    if name == "cpu" and GPU:
        pytest.skip("the tests' tensors are on the GPU")
    with ak.use_backend(name):
        yield name


@pytest.fixture(params=["reference", "triton", "cpu"])
def backend(request):
    """Every call in the test runs on this backend."""
    yield from _use(request.param)


@pytest.fixture(params=["triton", "cpu"])
def kernels(request):
    """As ``backend``, for what concerns compiled kernels only."""
    yield from _use(request.param)


@pytest.fixture
def triton_backend():
    """For what concerns Triton only."""
    yield from _use("triton")


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
