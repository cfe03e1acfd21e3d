"""Balanced losses where ranks share classes, rows, or a batch of rows of their own."""

import pytest
import torch
from torch import nn

import anl_kernels as ak
from tests.balance.definitions import MIXED, MODES, balance_of, balanced_by_formula
from tests.distributed.helpers import (
    NUM_CLASSES,
    SPLITS,
    assert_close,
    mine,
    random_logits,
    shards_of,
)
from tests.distributed.meshes import R, distributed, leaf, mesh_of, of_rows, placed, whole

over_backends = pytest.mark.parametrize("backend", ["reference", "cpu", "cuda"])
LAYOUTS = {
    "with-empty": ((5, NUM_CLASSES), (4,), (0,)),
    "space": ((2, 9, 6), (4,), (2,)),
    "rows-and-space": ((3, 9, 5), (2, 2), (0, 2)),
    "rows-and-classes": ((5, NUM_CLASSES), (2, 2), (0, 1)),
    "rows-and-copies": ((5, NUM_CLASSES), (2, 2), (0, R)),
    "classes": ((5, NUM_CLASSES), (4,), (1,)),
}


def check_classes(group, sizes, backend):
    logits, target = random_logits((5, NUM_CLASSES))
    shards = shards_of(group, sizes)
    for mode in MODES:
        for reduction in ("mean", "none"):
            here, one = mine(logits, shards), leaf(logits)
            balances = [balance_of(mode, MIXED, NUM_CLASSES) for _ in range(2)]
            options = {"reduction": reduction, "return_aux": "denominators"}
            with ak.use_backend(backend):
                loss, aux = ak.robust_loss(
                    here, target, MIXED, process_group=shards, class_scale=balances[0], **options
                )
                wanted, plain = ak.robust_loss(
                    one, target, MIXED, class_scale=balances[1], **options
                )
            loss.sum().backward()
            wanted.sum().backward()
            assert_close(loss.detach(), wanted.detach(), 1e-12, mode)
            assert_close(here.grad, mine(one.grad, shards), 1e-11, mode)
            assert_close(aux.denominators, plain.denominators, 1e-12, mode)
            if mode == "running":
                assert_close(*(balance.running for balance in balances), 1e-12)


@over_backends
def test_classes(ranks, backend):
    ranks(3, check_classes, SPLITS["3-uneven"], backend)


def test_classes_in_triton(ranks):
    ranks(2, check_classes, SPLITS["2-empty"], "triton")


def check_rows(group, layout, backend):
    """The mean is over the rows of all ranks, once each."""
    shape, mesh, sharded = LAYOUTS[layout]
    logits, target = random_logits(shape)
    mesh, placements = mesh_of(mesh), placed(sharded)
    labels = distributed(target, mesh, of_rows(placements))
    for mode in MODES:
        given, one = distributed(leaf(logits), mesh, placements), leaf(logits)
        balances = [balance_of(mode, MIXED, shape[1]) for _ in range(2)]
        options = {"return_aux": "denominators"}
        with ak.use_backend(backend):
            loss, aux = ak.robust_loss(given, labels, MIXED, class_scale=balances[0], **options)
            wanted, plain = ak.robust_loss(one, target, MIXED, class_scale=balances[1], **options)
        loss.backward()
        wanted.backward()
        assert_close(loss.detach(), wanted.detach(), 1e-12, mode)
        assert_close(whole(given.grad), one.grad, 1e-11, mode)
        assert_close(whole(aux.denominators), plain.denominators, 1e-12, mode)
        if mode == "running":
            assert_close(*(balance.running for balance in balances), 1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows(ranks, layout):
    ranks(4, check_rows, layout, "cpu")


@pytest.mark.parametrize("backend", ["reference", "cuda"])
def test_rows_on_backends(ranks, backend):
    ranks(4, check_rows, "rows-and-classes", backend)


def check_heads(group, layout):
    shape, mesh, sharded, by = {
        "rows": ((5, 6), (4,), (0,), (R,)),
        "rows-and-classes": ((5, 6), (2, 2), (0, R), (R, 0)),
    }[layout]
    mesh = mesh_of(mesh)
    hidden, weight = torch.randn(shape).double(), torch.randn(NUM_CLASSES, 6).double()
    target = torch.tensor([3, -100, 0, 39, 7])
    for mode in MODES:
        spread = [distributed(leaf(hidden), mesh, placed(sharded))]
        spread.append(distributed(leaf(weight), mesh, placed(by)))
        labels = distributed(target, mesh, placed(sharded))
        results = []
        for z, w, y in ((*spread, labels), (leaf(hidden), leaf(weight), target)):
            balance = balance_of(mode, MIXED, NUM_CLASSES)
            loss = ak.linear_robust_loss(z, w, y, MIXED, class_scale=balance)
            loss.backward()
            results.append([loss.detach(), whole(z.grad), whole(w.grad)])
        for ours, wanted in zip(*results, strict=True):
            assert_close(ours, wanted, 1e-11, mode)


@pytest.mark.parametrize("layout", ["rows", "rows-and-classes"])
def test_heads(ranks, layout):
    ranks(4, check_heads, layout)


def rows_of(rank, counts, tensor):
    return tensor[sum(counts[:rank]) : sum(counts[: rank + 1])]


def check_batch_of_all_ranks(group, backend, head):
    """Each has its own rows, one of them none that count; factors are those of all."""
    counts = [3, 2, 0]
    logits, target = random_logits((5, 9))
    target[3:] = -100
    z, y = (rows_of(group.rank(), counts, tensor) for tensor in (logits, target))
    valid = max(1, int((y != -100).sum()))
    for mode in ("batch", "running"):
        balance = balance_of(mode, MIXED, 9, process_group=group)
        before = None if balance.running is None else balance.running.clone()
        here = leaf(z)
        with ak.use_backend(backend):
            if head:
                loss = ak.linear_robust_loss(
                    here, torch.eye(9).double(), y, MIXED, class_scale=balance
                )
            else:
                loss = ak.robust_loss(here, y, MIXED, class_scale=balance)
        loss.backward()
        _, wanted = balanced_by_formula(logits, target, MIXED, mode, 1 / valid, before)
        assert_close(here.grad, rows_of(group.rank(), counts, wanted), 1e-11, mode)
    one = ak.Balance("running", running=before.clone())
    ak.robust_loss(leaf(logits), target, MIXED, class_scale=one)
    assert_close(balance.running, one.running, 1e-12)


@pytest.mark.parametrize("head", [False, True])
@over_backends
def test_batch_of_all_ranks(ranks, backend, head):
    ranks(3, check_batch_of_all_ranks, backend, head)


def check_batch_beside_classes(group):
    """Data parallel over one dimension of a mesh, classes over the other."""
    mesh = mesh_of((2, 2), ("data", "classes"))
    data, shards = mesh.get_group("data"), shards_of(mesh.get_group("classes"), (15, 25))
    logits, target = random_logits((6, NUM_CLASSES))
    z, y = (rows_of(data.rank(), [4, 2], tensor) for tensor in (logits, target))
    here = mine(z, shards)
    options = {"class_scale": ak.Balance("batch", process_group=data), "process_group": shards}
    ak.robust_loss(here, y, MIXED, reduction="sum", **options).backward()
    _, wanted = balanced_by_formula(logits, target, MIXED, "batch")
    assert_close(here.grad, mine(rows_of(data.rank(), [4, 2], wanted), shards), 1e-11)


def test_batch_beside_classes(ranks):
    ranks(4, check_batch_beside_classes)


def check_a_bad_row(group):
    """What one rank has of NaN spoils no mean."""
    logits, target = random_logits((6, 9))
    z, y = (rows_of(group.rank(), [3, 3], tensor) for tensor in (logits, target))
    if group.rank() == 1:
        z[0, 0] = torch.nan
    balance = ak.Balance("running", running=torch.zeros(4).double(), process_group=group)
    ak.robust_loss(leaf(z), y, MIXED, class_scale=balance)
    kept = torch.arange(6) != 3
    wanted = ak.Balance("running", running=torch.zeros(4).double())
    ak.robust_loss(leaf(logits[kept]), target[kept], MIXED, class_scale=wanted)
    assert_close(balance.running, wanted.running, 1e-12)


def test_a_bad_row(ranks):
    ranks(2, check_a_bad_row)


def check_ddp(group):
    """The running mean stays the same on all ranks, by the group or by DDP's broadcast."""
    from torch.nn.parallel import DistributedDataParallel

    terms = 1.0 * ak.NCE() + 1.0 * ak.NNCE()
    for given in (group, None):
        torch.manual_seed(1)
        scale = ak.Balance("running", process_group=given)
        criterion = ak.LinearRobustLoss(nn.Linear(6, 9), terms, class_scale=scale)
        model = DistributedDataParallel(criterion, process_group=group)
        for step in range(3):
            torch.manual_seed(10 * step + group.rank())
            model(torch.randn(4, 6), torch.randint(9, (4,))).backward()
        if given is None:  # broadcast as the next forward begins
            model(torch.zeros(1, 6), torch.full((1,), -100))
        states = [torch.empty(2) for _ in range(2)]
        torch.distributed.all_gather(states, criterion.running_summands, group=group)
        assert torch.equal(*states)
        assert states[0].all()


def test_ddp(ranks):
    ranks(2, check_ddp)


def check_distributed_module(group):
    """distribute_module makes DTensors of buffers too."""
    from torch.distributed.tensor import distribute_module

    mesh, terms = mesh_of((4,)), 1.0 * ak.NCE() + 1.0 * ak.NNCE()
    logits, target = random_logits((5, 9))
    modules = [ak.RobustLoss(terms, class_scale="running").double() for _ in range(2)]
    distribute_module(modules[0], mesh)
    spread = distributed(leaf(logits), mesh, placed([0]))
    labels = distributed(target, mesh, placed([0]))
    for _ in range(2):
        spread.grad, one = None, leaf(logits)
        modules[0](spread, labels).backward()
        modules[1](one, target).backward()
        assert_close(whole(spread.grad), one.grad, 1e-11)
    assert_close(whole(modules[0].running_summands), modules[1].running_summands, 1e-12)


def test_distributed_module(ranks):
    ranks(4, check_distributed_module)
