"""Classes over ranks on a GPU: one rank that has all of them, by NCCL."""

import pytest
import torch
import torch.distributed as dist

import anl_kernels as ak
from tests.backends import running_on

pytestmark = pytest.mark.gpu

TERMS = 5.0 * ak.NCE() + 5.0 * ak.NNCE()


@pytest.fixture(scope="module")
def shards():
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield ak.ClassShards(dist.group.WORLD, (5000,))
    dist.destroy_process_group()


@pytest.fixture(autouse=True, params=["triton", "cuda"])
def _backend(request):
    with running_on(request.param):
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(300, 5000), (3, 5000), (2, 5000, 17)], ids=str)
def test_one_rank_equals_no_ranks(shards, shape, dtype):
    logits = 3 * torch.randn(shape, device="cuda", dtype=dtype)
    target = torch.randint(5000, shape[:1] + shape[2:], device="cuda")
    found = []
    for process_group in (shards, None):
        z = logits.clone().requires_grad_()
        loss, aux = ak.robust_loss(
            z, target, TERMS, reduction="none", process_group=process_group, return_aux=True
        )
        loss.sum().backward()
        found.append((loss.detach(), z.grad, aux.lse, aux.p_y, aux.argmax))
    for ours, wanted in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_nothing_waits_for_the_device(shards):
    hidden = torch.randn(64, 32, device="cuda", requires_grad=True)
    weight = torch.randn(5000, 32, device="cuda", requires_grad=True)
    target = torch.randint(5000, (64,), device="cuda")

    def step():
        loss, _ = ak.linear_robust_loss(
            hidden, weight, target, TERMS, process_group=shards, return_aux=True
        )
        loss.backward()

    step()  # opens the communicator
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
