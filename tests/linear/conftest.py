import pytest

from anl_kernels.backends.choice import best
from tests.backends import running_on
from tests.conftest import GPU


@pytest.fixture(params=["reference", "cuda", "cpu"] + ["triton"] * GPU)
def quick(request):
    """As ``backend``, without Triton where it is interpreted: for tests of every case."""
    with running_on(request.param):
        yield request.param


@pytest.fixture
def fastest(device):
    """The backend that "auto" takes, by name."""
    name = best(device.type)
    with running_on(name):
        yield name


@pytest.fixture
def poisoned(poisoned, monkeypatch):
    """Deterministic algorithms, which poisoning needs, ask this of matrix products on a GPU."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
