"""The L1 penalty of parameters that lie over ranks is that of the whole."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

import anl_kernels as ak
from tests.distributed.helpers import assert_close
from tests.distributed.meshes import mesh_of

FACTOR = 0.3


def official(parameters):
    return sum(p.abs().sum() for p in parameters)


def check_dtensors(group):
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    plain = [torch.randn(5, 3).double().requires_grad_() for _ in range(4)]
    line, grid = mesh_of((4,)), mesh_of((2, 2))
    places = [(line, [Shard(0)]), (line, [Replicate()]), (grid, [Replicate(), Shard(1)])]
    given = [
        distribute_tensor(p.detach(), *where).requires_grad_()
        for p, where in zip(plain, places, strict=False)
    ]
    given.append(plain[-1].detach().clone().requires_grad_())
    value, wanted = FACTOR * ak.l1_penalty(given), FACTOR * official(plain)
    assert_close(value.detach(), wanted.detach(), 1e-12)
    value.backward()
    wanted.backward()
    ak.add_l1_grad_(given, 1.0)
    official(plain).backward()
    for ours, p in zip(given[:-1], plain, strict=False):
        assert ours.grad.placements == ours.placements
        assert_close(ours.grad.full_tensor(), p.grad, 1e-12)
    assert_close(given[-1].grad, plain[-1].grad, 1e-12)

    with pytest.raises(ValueError, match="partial sums"):
        ak.l1_penalty([DTensor.from_local(torch.ones(2), line, [Partial()])])


def test_dtensors(ranks):
    ranks(4, check_dtensors)


def check_fsdp(group, by_hook):
    """Two steps with clipping; the penalty of a model that is gathered, in part, after forward."""
    from torch.distributed.fsdp import fully_shard

    whole = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5)).double()
    model = copy.deepcopy(whole)
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh_of((4,)))
    ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, whole))
    if by_hook:
        ak.L1Hook(ours, FACTOR, max_norm=1.0)
    rows = torch.randn(8, 6, dtype=torch.float64)
    for _ in range(2):
        ours.zero_grad()
        theirs.zero_grad()
        loss = model(rows.chunk(4)[group.rank()]).square().mean()
        wanted = whole(rows).square().mean() + FACTOR * official(whole.parameters())
        if not by_hook:
            penalty = ak.l1_penalty(model.parameters())
            assert_close(penalty.detach(), official(whole.parameters()).detach(), 1e-12)
            loss = loss + FACTOR * penalty
        loss.backward()
        wanted.backward()
        if not by_hook:
            clip_grad_norm_(model.parameters(), 1.0)
        clip_grad_norm_(whole.parameters(), 1.0)
        ours.step()
        theirs.step()
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        assert_close(p.full_tensor().detach(), q.detach(), 1e-11)


def test_fsdp_with_the_penalty_in_the_loss(ranks):
    ranks(4, check_fsdp, False)


def test_fsdp_with_the_hook(ranks):
    ranks(4, check_fsdp, True)
