"""The entropy regulariser of a batch whose rows ranks share, each with its own."""

import pytest
import torch
from torch import nn

import anl_kernels as ak
from tests.backends import running_on

COUNTS = (3, 0, 5, 2)
MIN_PROB = 1e-3


def rows_of(rank, shape=(7,)):
    """The rows of all ranks, which of them count, and the slice of them that this rank has."""
    logits = 2 * torch.randn(sum(COUNTS), *shape, dtype=torch.float64)
    counted = torch.rand(sum(COUNTS), *shape[1:]) > 0.3
    first = sum(COUNTS[:rank])
    return logits, counted, slice(first, first + COUNTS[rank])


def check_regulariser(group, backend):
    """The gradient, averaged over ranks as DDP does, is that of one process with all rows."""
    for shape in ((7,), (7, 2)):
        logits, counted, mine = rows_of(group.rank(), shape)
        here = logits[mine].clone().requires_grad_()
        whole = logits.clone().requires_grad_()
        with running_on(backend):
            value = ak.entropy_regulariser(
                here, counted=counted[mine], min_prob=MIN_PROB, process_group=group
            )
            (gradient,) = torch.autograd.grad(3 * value, here)
            wanted = ak.entropy_regulariser(whole, counted=counted, min_prob=MIN_PROB)
            (by_all,) = torch.autograd.grad(3 * wanted, whole)
        torch.testing.assert_close(value, wanted)
        torch.testing.assert_close(gradient / group.size(), by_all[mine])


@pytest.mark.parametrize("backend", ["reference", "triton", "cuda", "cpu"])
def test_regulariser(ranks, backend):
    ranks(4, check_regulariser, backend)


def check_second_derivatives(group):
    logits, counted, mine = rows_of(group.rank())
    here = logits[mine].clone().requires_grad_()
    whole = logits.clone().requires_grad_()

    def norm(z, counted, mine, group=None):
        value = ak.entropy_regulariser(z, counted=counted, min_prob=MIN_PROB, process_group=group)
        (gradient,) = torch.autograd.grad(value, z, create_graph=True)
        return torch.autograd.grad((gradient[mine] ** 2).sum(), z)[0]

    # The gradient on a rank is of all ranks' values, of which there are size().
    ours = norm(here, counted[mine], slice(None), group) / group.size() ** 2
    gradients = [norm(whole, counted, rows_of(rank)[2]) for rank in range(group.size())]
    torch.testing.assert_close(ours, sum(gradients)[mine])


def test_second_derivatives(ranks):
    ranks(4, check_second_derivatives)


def check_ddp(group):
    from torch.nn.parallel import DistributedDataParallel

    inputs, counted, mine = rows_of(group.rank(), (5,))
    target = torch.randint(9, (sum(COUNTS),)).masked_fill(~counted, -100)
    model = nn.Linear(5, 9, dtype=torch.float64)
    parallel = DistributedDataParallel(model, process_group=group)
    # A mean over ranks of sums is not the sum over all rows, so that the loss is scaled.
    loss = ak.RobustLoss(group.size() * ak.NCE(), reduction="sum")
    criterion = ak.EntropyRegularisedLoss(loss, 2.0, MIN_PROB, process_group=group)
    criterion(parallel(inputs[mine]), target[mine]).backward()
    ours = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    whole = ak.EntropyRegularisedLoss(ak.RobustLoss(ak.NCE(), reduction="sum"), 2.0, MIN_PROB)
    whole(model(inputs), target).backward()
    for actual, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(actual, parameter.grad)


def test_ddp(ranks):
    ranks(4, check_ddp)


def check_compiled(group):
    logits, counted, mine = rows_of(group.rank())
    torch.compiler.reset()
    function = torch.compile(ak.entropy_regulariser, fullgraph=True, backend="aot_eager")
    results = []
    for call in (ak.entropy_regulariser, function):
        here = logits[mine].clone().requires_grad_()
        value = call(here, counted=counted[mine], min_prob=MIN_PROB, process_group=group)
        results.append((value.detach(), *torch.autograd.grad(value, here)))
    torch.testing.assert_close(*results)


def test_compiled(ranks):
    ranks(2, check_compiled)


def check_refusals(group):
    shards = ak.ClassShards(group, (9,))
    with pytest.raises(TypeError, match="process_group"):
        ak.EntropyRegularisedLoss(ak.RobustLoss(ak.NCE()), 1.0, process_group=shards)
    with pytest.raises(ValueError, match="process_group=None"):
        ak.EntropyRegularisedLoss(ak.RobustLoss(ak.NCE(), process_group=group), 1.0)


def test_refusals(ranks):
    ranks(1, check_refusals)
