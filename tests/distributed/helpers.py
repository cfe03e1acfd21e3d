"""What the tests of shards say on a rank."""

import torch

import anl_kernels as ak
from tests.helpers import error

# How many of 40 classes each rank has: even, uneven, with nothing.
SPLITS = {
    "1": (40,),
    "2": (20, 20),
    "2-uneven": (3, 37),
    "2-empty": (0, 40),
    "3-uneven": (1, 26, 13),
    "3-empty": (27, 0, 13),
    "4": (10, 10, 10, 10),
    "4-chunked": (14, 14, 12, 0),
}
NUM_CLASSES = 40


def shards_of(group, sizes):
    return ak.ClassShards(group, sizes)


def mine(tensor, shards, dim=1):
    """This rank's classes of a tensor with all of them, as a leaf."""
    part = tensor.narrow(dim, shards.first, shards.num_here)
    return part.detach().clone().requires_grad_(tensor.is_floating_point())


def assert_close(actual, wanted, tolerance, what=""):
    """Within a tolerance in norm; nothing equals nothing."""
    assert actual.shape == wanted.shape, (what, actual.shape, wanted.shape)
    if wanted.numel():
        assert error(actual, wanted) <= tolerance, (what, error(actual, wanted))


def random_logits(shape, dtype=torch.float64):
    """Logits with classes in dimension 1 and labels, the same on every rank."""
    logits = 3 * torch.randn(shape, dtype=torch.float64)
    target = torch.randint(shape[1], shape[:1] + shape[2:])
    target.view(-1)[1] = -100
    return logits.to(dtype), target
