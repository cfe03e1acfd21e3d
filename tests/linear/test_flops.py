"""What FlopCounterMode counts: the products of the head that is not fused."""

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.throughput import measure_flops
from torch.utils.flop_counter import FlopCounterMode

import anl_kernels as ak

N, D, K = 40, 6, 50
PRODUCT = 2 * N * D * K


def flops_of(loss, device, frozen=(), dtype=torch.float32):
    parts = {"hidden": (N, D), "weight": (K, D), "bias": (K,)}
    tensors = {
        name: torch.randn(shape, device=device, dtype=dtype, requires_grad=name not in frozen)
        for name, shape in parts.items()
    }
    target = torch.randint(K, (N,), device=device)
    with FlopCounterMode(display=False) as counter:
        value = loss(*tensors.values(), target)
        if value.requires_grad:
            value.sum().backward()
    return counter.get_total_flops()


def fused(hidden, weight, bias, target, **options):
    return ak.linear_robust_loss(hidden, weight, target, ak.GCE(), bias, **options)


def unfused(hidden, weight, bias, target):
    return F.cross_entropy(F.linear(hidden, weight, bias), target)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "frozen",
    [(), ("weight",), ("hidden",), ("bias", "weight"), ("hidden", "weight", "bias")],
    ids=str,
)
def test_one_pass_counts_as_what_is_not_fused(frozen, device):
    assert flops_of(fused, device, frozen) == flops_of(unfused, device, frozen) > 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_chunks_do_not_count(device):
    def in_chunks(*args):
        return fused(*args, chunk_bytes=4 * K * 7)

    assert flops_of(in_chunks, device) == 3 * PRODUCT


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_recompute_form_counts_its_fourth_product(device):
    def by_row(*args):
        return fused(*args, reduction="none")

    assert flops_of(by_row, device) == 4 * PRODUCT
    assert flops_of(by_row, device, frozen=("hidden",)) == 3 * PRODUCT


def test_padding_does_not_count():
    assert flops_of(lambda *args: fused(*args, num_classes=K - 10), "meta") == (
        3 * PRODUCT * (K - 10) // K
    )


def test_measure_flops_of_lightning():
    with torch.device("meta"):
        head = torch.nn.Linear(D, K)
        criterion = ak.LinearRobustLoss(head, ak.GCE())
        x, y = torch.randn(N, D), torch.zeros(N, dtype=torch.int64)
    assert measure_flops(criterion, lambda: criterion(x, y), lambda loss: loss) == 2 * PRODUCT
