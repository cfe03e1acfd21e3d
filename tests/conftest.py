import os

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

from tests.backends import forget, running_on
from tests.cuda import emulated


def pytest_configure():
    # Here, before anything asks for a backend, and before pytest-xdist starts its workers, who find
    # the module built.
    if not GPU:
        emulated.install()


def pytest_collection_modifyitems(items):
    for item in items:
        if not GPU and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA or ROCm device"))


@pytest.fixture(scope="session")
def device():
    return torch.device("cuda" if GPU else "cpu")


@pytest.fixture(params=["reference", "triton", "cuda", "cpu"])
def backend(request):
    """Every call in the test runs on this backend."""
    with running_on(request.param):
        yield request.param


@pytest.fixture(params=["triton", "cuda", "cpu"])
def kernels(request):
    """As ``backend``, for what concerns compiled kernels only."""
    with running_on(request.param):
        yield request.param


@pytest.fixture
def triton_backend():
    """For what concerns Triton only."""
    with running_on("triton"):
        yield "triton"


@pytest.fixture
def cuda_backend():
    """For what concerns the CUDA kernels only."""
    with running_on("cuda"):
        yield "cuda"


@pytest.fixture
def machine(monkeypatch):
    """A monkeypatch for what backends ask of the machine, which is asked anew in the test."""
    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


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
