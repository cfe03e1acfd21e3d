"""Classes over ranks beside what PyTorch spreads over ranks: DTensor, DDP, FSDP2."""

import copy

import pytest
import torch
from torch import nn

import anl_kernels as ak
from tests.cases import CASES
from tests.distributed.helpers import NUM_CLASSES, assert_close, random_logits

TERMS = CASES["ANL-CE"]
WIDTH = 6


def mesh_of(*shape, names=None):
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape, mesh_dim_names=names)


def check_dtensor_logits(group, shape, classes_sharded):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    logits, target = random_logits(shape)
    placement = Shard(1) if classes_sharded else Replicate()
    given = distribute_tensor(logits, mesh_of(4), [placement]).requires_grad_()
    labels = distribute_tensor(target, mesh_of(4), [Replicate()])
    whole = logits.clone().requires_grad_()
    wanted = ak.robust_loss(whole, target, TERMS)
    wanted.backward()
    for target_given in (target, labels):
        given.grad = None
        loss = ak.robust_loss(given, target_given, TERMS)
        loss.backward()
        assert_close(loss.detach(), wanted.detach(), 1e-12)
        assert given.grad.placements == given.placements
        assert_close(given.grad.full_tensor(), whole.grad, 1e-11)


@pytest.mark.parametrize("shape", [(5, NUM_CLASSES), (2, 41, 3), (5, 5)], ids=str)
def test_dtensor_logits(ranks, shape):
    ranks(4, check_dtensor_logits, shape, True)


def test_replicated_dtensor_logits(ranks):
    ranks(4, check_dtensor_logits, (5, NUM_CLASSES), False)


def check_dtensor_head(group, num_classes, replicated_hidden):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = mesh_of(4)
    hidden = torch.randn(7, WIDTH, dtype=torch.float64)
    head = nn.Linear(WIDTH, num_classes, dtype=torch.float64)
    target = torch.randint(num_classes, (7,))
    whole, whole_head = hidden.clone().requires_grad_(), copy.deepcopy(head)
    wanted = ak.linear_robust_loss(whole, whole_head.weight, target, TERMS, whole_head.bias)
    wanted.backward()
    weight, bias = (
        distribute_tensor(p.detach(), mesh, [Shard(0)]).requires_grad_() for p in head.parameters()
    )
    h = hidden.clone()
    if replicated_hidden:
        h = distribute_tensor(h, mesh, [Replicate()])
    h.requires_grad_()
    loss = ak.linear_robust_loss(h, weight, target, TERMS, bias, chunk_bytes=200)
    loss.backward()
    assert_close(loss.detach(), wanted.detach(), 1e-12)
    of_hidden = h.grad.full_tensor() if replicated_hidden else h.grad
    assert_close(of_hidden, whole.grad, 1e-11)
    assert_close(weight.grad.full_tensor(), whole_head.weight.grad, 1e-11)
    assert_close(bias.grad.full_tensor(), whole_head.bias.grad, 1e-11)


@pytest.mark.parametrize("num_classes", [NUM_CLASSES, 41, 9])
@pytest.mark.parametrize("replicated_hidden", [False, True])
def test_dtensor_head(ranks, num_classes, replicated_hidden):
    ranks(4, check_dtensor_head, num_classes, replicated_hidden)


def check_dtensor_refusals(group):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = mesh_of(4)
    logits, target = random_logits((8, NUM_CLASSES))
    by_rows = distribute_tensor(logits, mesh, [Shard(0)])
    by_classes = distribute_tensor(logits, mesh, [Shard(1)])
    for given in (by_rows, by_classes):
        with pytest.raises(ValueError, match=r"process_group must be None .* its rows and classes"):
            ak.robust_loss(given, target, TERMS, process_group=group)
    with pytest.raises(ValueError, match="target must be replicated"):
        ak.robust_loss(by_classes, distribute_tensor(target, mesh, [Shard(0)]), TERMS)
    hidden = distribute_tensor(torch.randn(8, WIDTH).double(), mesh, [Shard(0)])
    weight = distribute_tensor(torch.randn(NUM_CLASSES, WIDTH).double(), mesh, [Shard(0)])
    with pytest.raises(ValueError, match="linear_weight must be replicated over the ranks that"):
        ak.linear_robust_loss(hidden, weight, target, TERMS)
    bias = distribute_tensor(torch.randn(NUM_CLASSES).double(), mesh, [Replicate()])
    with pytest.raises(ValueError, match="linear_bias"):
        ak.linear_robust_loss(torch.randn(8, WIDTH).double(), weight, target, TERMS, bias)


def test_dtensor_refusals(ranks):
    ranks(4, check_dtensor_refusals)


class Model(nn.Module):
    """An embedding, a layer, and a head with its loss."""

    def __init__(self, head, **options):
        super().__init__()
        self.embed = nn.Embedding(NUM_CLASSES, WIDTH, dtype=torch.float64)
        self.layer = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.criterion = ak.LinearRobustLoss(head, TERMS, **options)

    def forward(self, tokens, target):
        return self.criterion(self.layer(self.embed(tokens)).tanh(), target)


def whole_model():
    torch.manual_seed(1)
    return Model(nn.Linear(WIDTH, NUM_CLASSES, dtype=torch.float64))


def batch_of(rank, ranks):
    """The rows of one of several data-parallel ranks."""
    generator = torch.Generator().manual_seed(2)
    tokens, target = torch.randint(NUM_CLASSES, (2, 4 * ranks), generator=generator)
    return tokens.chunk(ranks)[rank], target.chunk(ranks)[rank], tokens, target


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def check_fsdp(group, shard_head_alone):
    from torch.distributed.fsdp import fully_shard

    model, whole = whole_model(), whole_model()
    tokens, target, all_tokens, all_target = batch_of(group.rank(), 4)
    mesh = mesh_of(4)
    if shard_head_alone:
        fully_shard(model.criterion, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(tokens, target).backward()
    whole(all_tokens, all_target).backward()
    wanted = gradients(whole)
    for name, grad in gradients(model).items():
        assert_close(grad.full_tensor(), wanted[name], 1e-11, name)


@pytest.mark.parametrize("shard_head_alone", [False, True])
def test_fsdp_shards_the_head(ranks, shard_head_alone):
    ranks(4, check_fsdp, shard_head_alone)


def check_fsdp_and_classes(group):
    """A 2 x 2 mesh: data parallel by FSDP, but for the head, whose classes two ranks share."""
    from torch.distributed.fsdp import fully_shard

    mesh = mesh_of(2, 2, names=("data", "classes"))
    shards = ak.ClassShards.chunked(mesh.get_group("classes"), NUM_CLASSES)
    whole = whole_model()
    head = nn.Linear(WIDTH, shards.num_here, dtype=torch.float64)
    with torch.no_grad():
        for mine, all_of_it in zip(
            head.parameters(), whole.criterion.head.parameters(), strict=True
        ):
            mine.copy_(all_of_it[shards.first : shards.first + shards.num_here])
    torch.manual_seed(1)
    model = Model(head, process_group=shards)
    model.embed.load_state_dict(whole.embed.state_dict())
    model.layer.load_state_dict(whole.layer.state_dict())
    fully_shard(model, mesh=mesh["data"])
    tokens, target, all_tokens, all_target = batch_of(mesh.get_local_rank("data"), 2)
    model(tokens, target).backward()
    whole(all_tokens, all_target).backward()
    wanted = gradients(whole)
    for name, grad in gradients(model).items():
        expected = wanted[name]
        if name.startswith("criterion"):
            expected = expected.narrow(0, shards.first, shards.num_here)
        assert_close(grad.full_tensor(), expected, 1e-11, name)


def test_fsdp_beside_classes_over_ranks(ranks):
    ranks(4, check_fsdp_and_classes)


def check_fsdp_weight_taken_outside(group):
    """A weight that FSDP shards over ranks with different rows is no vocabulary-parallel one."""
    from torch.distributed.fsdp import fully_shard

    head = nn.Linear(WIDTH, NUM_CLASSES, dtype=torch.float64)
    fully_shard(head, mesh=mesh_of(4))
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
    fully_shard(model.criterion.head, mesh=mesh_of(4))
    tokens, target, *_ = batch_of(group.rank(), 4)
    with pytest.raises(ValueError, match="head must not be given to fully_shard by itself"):
        model(tokens, target)


def test_fsdp_of_the_head_alone_is_refused(ranks):
    ranks(4, check_fsdp_of_the_head_alone)


def check_ddp(group):
    """A 2 x 2 mesh: DDP over one dimension, classes over the other."""
    from torch.nn.parallel import DistributedDataParallel

    mesh = mesh_of(2, 2, names=("data", "classes"))
    shards = ak.ClassShards.chunked(mesh.get_group("classes"), NUM_CLASSES)
    whole = whole_model()
    model = whole_model()
    model.criterion.options["process_group"] = shards
    for name in ("weight", "bias"):
        part = getattr(model.criterion.head, name).detach()
        part = part.narrow(0, shards.first, shards.num_here).clone()
        setattr(model.criterion.head, name, nn.Parameter(part))
    parallel = DistributedDataParallel(model, process_group=mesh.get_group("data"))
    tokens, target, all_tokens, all_target = batch_of(mesh.get_local_rank("data"), 2)
    parallel(tokens, target).backward()
    whole(all_tokens, all_target).backward()
    wanted = gradients(whole)
    for name, grad in gradients(model).items():
        expected = wanted[name]
        if name.startswith("criterion"):
            expected = expected.narrow(0, shards.first, shards.num_here)
        assert_close(grad, expected, 1e-11, name)


def test_ddp_beside_classes_over_ranks(ranks):
    ranks(4, check_ddp)


def check_column_means(group):
    """The gradient, averaged over ranks as DDP does, is that of one process with all rows."""
    counts = [3, 0, 5, 2]
    logits = torch.randn(sum(counts), 7, dtype=torch.float64)
    first = sum(counts[: group.rank()])
    here = logits[first : first + counts[group.rank()]].clone().requires_grad_()
    whole = logits.clone().requires_grad_()

    def entropy(means):
        return -(means * means.log()).sum()

    means = ak.column_means(ak.softmax(here), group)
    wanted = ak.column_means(ak.softmax(whole))
    torch.testing.assert_close(means, whole.softmax(1).mean(0))
    entropy(means).backward()
    entropy(wanted).backward()
    averaged = here.grad / group.size()
    torch.testing.assert_close(averaged, whole.grad[first : first + len(here)])


def test_column_means(ranks):
    ranks(4, check_column_means)


def check_column_means_of_many_rows(group):
    means = ak.column_means(torch.full((40_000, 2), 0.5, dtype=torch.float16), group)
    assert means.tolist() == [0.5, 0.5]


def test_column_means_of_more_rows_than_float16_counts(ranks):
    ranks(2, check_column_means_of_many_rows)


def check_column_means_refuse(group):
    with pytest.raises(TypeError, match=r"rows must be float64, .*, got torch\.int64"):
        ak.column_means(torch.ones(3, 4).long())
    with pytest.raises(ValueError, match=r"\(N, K\), got \(3,\)"):
        ak.column_means(torch.rand(3))
    with pytest.raises(TypeError, match="process_group"):
        ak.column_means(torch.rand(3, 4), "gloo")


def test_column_means_refuse(ranks):
    ranks(1, check_column_means_refuse)
