import pytest
import torch

from tests.distributed.ranks import Ranks


@pytest.fixture(scope="session")
def ranks():
    """Runs a function on the ranks of a process group: see :class:`Ranks`."""
    if torch.cuda.is_available():
        pytest.skip("the ranks' tensors are on a CPU")
    started = Ranks()
    yield started
    started.close()
