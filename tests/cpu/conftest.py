import pytest
import torch

import anl_kernels as ak
from anl_kernels.backends.choice import why_not


@pytest.fixture(autouse=True)
def cpu_backend():
    """Every test of this folder runs on the CPU backend, or not at all."""
    reason = why_not("cpu")
    if reason:
        pytest.skip(reason)
    if torch.cuda.is_available():
        pytest.skip("the tests' tensors are on the GPU")
    with ak.use_backend("cpu"):
        yield


@pytest.fixture
def threads():
    """``torch.set_num_threads``, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
