"""What the tests of DTensors make and ask: meshes, placements, whole tensors."""

from functools import cache

R = "R"


@cache
def mesh_of(shape):
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape)


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
