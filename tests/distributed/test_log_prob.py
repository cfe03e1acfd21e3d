"""Log-probabilities where ranks share the classes."""

import pytest
import torch

import anl_kernels as ak
from tests.distributed.helpers import (
    NUM_CLASSES,
    SPLITS,
    assert_close,
    mine,
    random_logits,
    shards_of,
)


def gce(log_p):
    return -torch.expm1(0.7 * log_p) / 0.7


def check_log_prob(group, sizes):
    shards = shards_of(group, sizes)
    logits, target = random_logits((5, NUM_CLASSES))
    here, whole = mine(logits, shards), logits.clone().requires_grad_()
    upstream = torch.randn(5, dtype=torch.float64)
    ours = ak.log_prob(here, target, process_group=shards)
    wanted = ak.log_prob(whole, target)
    ours.backward(upstream)
    wanted.backward(upstream)
    assert_close(ours.detach(), wanted.detach(), 1e-12)
    assert_close(here.grad, mine(whole.grad, shards).detach(), 1e-11)

    weight = torch.rand(NUM_CLASSES, dtype=torch.float64)
    here.grad = whole.grad = None
    ours = ak.LogProbLoss(gce, weight=weight, process_group=shards)(here, target)
    wanted = ak.LogProbLoss(gce, weight=weight)(whole, target)
    ours.backward()
    wanted.backward()
    assert_close(ours.detach(), wanted.detach(), 1e-12)
    assert_close(here.grad, mine(whole.grad, shards).detach(), 1e-11)

    with pytest.raises(ValueError, match="classes must be one for each row where ranks share"):
        ak.log_prob(here, target.clamp(0).unsqueeze(1).expand(-1, 2), process_group=shards)


@pytest.mark.parametrize("split", ["2-uneven", "3-empty"])
def test_log_prob(ranks, split):
    ranks(len(SPLITS[split]), check_log_prob, SPLITS[split])
