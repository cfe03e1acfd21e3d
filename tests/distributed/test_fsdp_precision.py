"""FSDP2 with a policy of 16 bits, and weights of rows that are to keep theirs."""

import warnings

import pytest
import torch
from torch import nn

import anl_kernels as ak
from anl_kernels.distributed import local_parts
from tests.distributed.meshes import mesh_of

WIDTH, NUM_CLASSES, ROWS = 6, 11, 64


class Model(nn.Module):
    """A layer, and a head with its loss; its inputs are floats, as those of an image classifier."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.criterion = ak.LinearRobustLoss(nn.Linear(WIDTH, NUM_CLASSES), ak.GCE())

    def forward(self, inputs, target, sample_weight):
        hidden = self.layer(inputs.to(self.layer.weight.dtype))
        return self.criterion(hidden, target, sample_weight=sample_weight)


def inputs():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(ROWS, WIDTH, generator=generator)
    target = torch.randint(NUM_CLASSES, (ROWS,), generator=generator)
    # Rounded to bfloat16 all of these are 1, 0.2% away.
    return x, target, torch.full((ROWS,), 1 + 2**-9)


def loss_of(shard_criterion, cast):
    """The loss of a sharded model, and the messages of the warnings."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    torch.manual_seed(4)
    model = Model()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, cast_forward_inputs=cast)
    if shard_criterion:
        fully_shard(model.criterion, mesh=mesh_of((4,)), mp_policy=policy)
    fully_shard(model, mesh=mesh_of((4,)), mp_policy=policy)
    local_parts._warn.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = [model(*inputs()) for _ in range(2)]
    losses[0].backward()
    messages = [str(w.message) for w in caught if "sample_weight" in str(w.message)]
    return losses[0].detach(), messages


def check_policy(group, shard_criterion):
    """By default weights are rounded, and a warning says so once; with the policy they are not."""
    x, target, sample_weight = inputs()
    torch.manual_seed(4)
    whole = Model().to(torch.bfloat16)
    wanted = whole(x, target, sample_weight).detach()
    rounded, messages = loss_of(shard_criterion, cast=True)
    assert len(messages) == 1
    assert "cast_forward_inputs=False" in messages[0]
    assert (rounded / wanted - 1).abs() > 1e-3
    kept, messages = loss_of(shard_criterion, cast=False)
    assert messages == []
    torch.testing.assert_close(kept, wanted)


@pytest.mark.parametrize("shard_criterion", [False, True])
def test_weights_keep_float32(ranks, shard_criterion):
    ranks(4, check_policy, shard_criterion)


def test_no_warning_without_fsdp():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        local_parts.warn_of_rounding(torch.ones(3))
        if not local_parts._fsdp_in_use():
            local_parts.warn_of_rounding(torch.ones(3).half())
