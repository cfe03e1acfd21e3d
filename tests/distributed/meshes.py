"""What the tests of DTensors make and ask: meshes, placements, whole tensors."""

from functools import cache

import torch

from tests.distributed.helpers import assert_close

R = "R"


@cache
def mesh_of(shape, names=None):
    """A mesh of all ranks: one that some of them do not make puts later groups out of step."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def placed(sharded):
    from torch.distributed.tensor import Replicate, Shard

    return tuple(Replicate() if dim == R else Shard(dim) for dim in sharded)


def of_rows(placements):
    """Where the target lies, given where the logits do."""
    dims = [place.dim if place.is_shard() else 1 for place in placements]
    return placed([R if dim == 1 else max(0, dim - 1) for dim in dims])


def distributed(tensor, mesh, placements):
    from torch.distributed.tensor import distribute_tensor

    given = distribute_tensor(tensor.detach(), mesh, placements)
    return given.requires_grad_(tensor.requires_grad)


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def leaf(tensor):
    return tensor.clone().requires_grad_()


def assert_same(function, spread, ones, second=False):
    """A function's value and derivatives by its first argument: spread over ranks, and whole."""
    results = []
    for given in (spread, ones):
        value = function(*given)
        (grad,) = torch.autograd.grad(value, given[0], create_graph=second)
        results.append([value.detach(), grad.detach()])
        if second:
            results[-1].append(torch.autograd.grad((grad**2).sum(), given[0])[0])
    for ours, wanted, tolerance in zip(*results, (1e-12, 1e-11, 1e-11), strict=False):
        assert_close(whole(ours), wanted, tolerance)
