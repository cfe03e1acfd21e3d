"""A head and its loss in models that DDP or FSDP2 spreads over ranks."""

import pytest
import torch
from torch import nn

import anl_kernels as ak
from tests.cases import CASES
from tests.distributed.helpers import NUM_CLASSES, assert_close
from tests.distributed.meshes import mesh_of, whole

TERMS = CASES["ANL-CE"]
WIDTH = 6


class Model(nn.Module):
    """An embedding, a layer, and a head with its loss."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(NUM_CLASSES, WIDTH, dtype=torch.float64)
        self.layer = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        head = nn.Linear(WIDTH, NUM_CLASSES, dtype=torch.float64)
        self.criterion = ak.LinearRobustLoss(head, TERMS)

    def forward(self, tokens, target):
        return self.criterion(self.layer(self.embed(tokens)).tanh(), target)


def whole_model():
    torch.manual_seed(1)
    return Model()


def batch_of(rank, ranks):
    """The rows of one of several data-parallel ranks."""
    generator = torch.Generator().manual_seed(2)
    tokens, target = torch.randint(NUM_CLASSES, (2, 4 * ranks), generator=generator)
    return tokens.chunk(ranks)[rank], target.chunk(ranks)[rank], tokens, target


def assert_same_gradients(model, one, shards=None):
    """Those of a whole model; where ranks share classes, its head's are of the classes here."""
    wanted = {name: parameter.grad for name, parameter in one.named_parameters()}
    for name, parameter in model.named_parameters():
        expected = wanted[name]
        if shards is not None and name.startswith("criterion"):
            expected = expected.narrow(0, shards.first, shards.num_here)
        assert_close(whole(parameter.grad), expected, 1e-11, name)


def check_fsdp(group, shard_head_alone):
    from torch.distributed.fsdp import fully_shard

    model, one = whole_model(), whole_model()
    tokens, target, all_tokens, all_target = batch_of(group.rank(), 4)
    mesh = mesh_of((4,))
    if shard_head_alone:
        fully_shard(model.criterion, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(tokens, target).backward()
    one(all_tokens, all_target).backward()
    assert_same_gradients(model, one)


@pytest.mark.parametrize("shard_head_alone", [False, True])
def test_fsdp_shards_the_head(ranks, shard_head_alone):
    ranks(4, check_fsdp, shard_head_alone)


def check_beside_classes(group, wrapper):
    """A 2 x 2 mesh: data parallel over one dimension, classes of the head over the other."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    mesh = mesh_of((2, 2), ("data", "classes"))
    shards = ak.ClassShards.chunked(mesh.get_group("classes"), NUM_CLASSES)
    model, one = whole_model(), whole_model()
    model.criterion.options["process_group"] = shards
    for name in ("weight", "bias"):
        part = getattr(model.criterion.head, name).detach()
        part = part.narrow(0, shards.first, shards.num_here).clone()
        setattr(model.criterion.head, name, nn.Parameter(part))
    if wrapper == "fsdp":
        parallel = fully_shard(model, mesh=mesh["data"])
    else:
        parallel = DistributedDataParallel(model, process_group=mesh.get_group("data"))
    tokens, target, all_tokens, all_target = batch_of(mesh.get_local_rank("data"), 2)
    parallel(tokens, target).backward()
    one(all_tokens, all_target).backward()
    assert_same_gradients(model, one, shards)


@pytest.mark.parametrize("wrapper", ["fsdp", "ddp"])
def test_beside_classes_over_ranks(ranks, wrapper):
    ranks(4, check_beside_classes, wrapper)


def check_fsdp_weight_taken_outside(group):
    """A weight that FSDP shards over ranks with different rows is no vocabulary-parallel one."""
    from torch.distributed.fsdp import fully_shard

    head = nn.Linear(WIDTH, NUM_CLASSES, dtype=torch.float64)
    fully_shard(head, mesh=mesh_of((4,)))
    torch.manual_seed(group.rank())
    hidden = torch.randn(8, WIDTH, dtype=torch.float64)
    target = torch.randint(NUM_CLASSES, (8,))
    with pytest.raises(ValueError, match=r"LinearRobustLoss and let FSDP"):
        ak.linear_robust_loss(hidden, head.weight, target, TERMS, head.bias)


def test_a_weight_taken_out_of_fsdp_is_refused(ranks):
    ranks(4, check_fsdp_weight_taken_outside)


def check_fsdp_of_the_head_alone(group):
    from torch.distributed.fsdp import fully_shard

    model = whole_model()
    fully_shard(model.criterion.head, mesh=mesh_of((4,)))
    tokens, target, *_ = batch_of(group.rank(), 4)
    with pytest.raises(ValueError, match="head must not be given to fully_shard by itself"):
        model(tokens, target)


def test_fsdp_of_the_head_alone_is_refused(ranks):
    ranks(4, check_fsdp_of_the_head_alone)
