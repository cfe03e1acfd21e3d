"""Errors against float64, held to those of the same loss in plain PyTorch at the same dtype."""

import math

import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak
from tests.cases import over
from tests.helpers import error, expected, loss_and_grad, random_rows

# Of the norm: some thirty roundings of float32, the accumulator of every storage dtype.
EPSILON = dict.fromkeys([torch.float32, torch.bfloat16, torch.float16], 2e-6)


def bound(by_pytorch, dtype):
    """The most that our error may be; PyTorch may overflow, which allows any finite result."""
    return (by_pytorch if math.isfinite(by_pytorch) else math.inf) + EPSILON[dtype]


@pytest.mark.parametrize(("num_classes", "scale"), [(10, 1.0), (10, 5.0), (300, 3.0), (300, 5.0)])
@pytest.mark.parametrize("dtype", EPSILON)
@over()
def test_no_worse_than_pytorch(terms, dtype, num_classes, scale, backend, device):
    logits, target = random_rows(4, num_classes, dtype, device, scale)
    losses, grad = expected(logits.double(), target, terms)
    eager_losses, eager_grad = expected(logits, target, terms)
    ours, our_grad = loss_and_grad(logits, target, terms, reduction="none")
    assert error(ours, losses) <= bound(error(eager_losses, losses), dtype)
    assert error(our_grad, grad) <= bound(error(eager_grad, grad), dtype)
    if dtype != torch.float32:  # float32 inside: only the last rounding is the narrow one
        assert error(ours, losses) <= 5e-6
        assert error(our_grad, grad) <= 1.05 * error(grad.to(dtype), grad) + 5e-6


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("num_classes", [10, 300])
def test_no_worse_than_cross_entropy(num_classes, dtype, backend, device):
    logits, target = random_rows(8, num_classes, dtype, device, 5.0)
    losses, grad = expected(logits.double(), target, ak.CE() * 1)
    leaf = logits.clone().requires_grad_()
    eager = F.cross_entropy(leaf, target, reduction="none")
    eager.sum().backward()
    ours, our_grad = loss_and_grad(logits, target, ak.CE(), reduction="none")
    assert error(ours, losses) <= bound(error(eager.detach(), losses), dtype)
    assert error(our_grad, grad) <= bound(error(leaf.grad, grad), dtype)


def certain(device, num_classes=10):
    """Float32 logits whose target has all but 1e-7 of the probability."""
    logits = torch.zeros(2, num_classes)
    logits[:, 3] = math.log((num_classes - 1) / 1e-7)
    logits[1] += 2.5
    return logits.to(device), torch.tensor([3, 3], device=device)


@over()
def test_gradient_at_a_certain_target(terms, backend, device):
    logits, target = certain(device)
    _, grad = expected(logits.double(), target, terms)
    _, ours = loss_and_grad(logits, target, terms, reduction="sum")
    assert (1 - logits.double().softmax(1)[:, 3]).tolist() == pytest.approx([1e-7] * 2, rel=1e-5)
    torch.testing.assert_close(ours[:, 3].double(), grad[:, 3], rtol=1e-5, atol=0)


def test_cross_entropy_loses_the_gradient_at_a_certain_target(device):
    logits, target = certain(device)
    logits.requires_grad_()
    F.cross_entropy(logits, target, reduction="sum").backward()
    assert (logits.grad[:, 3] / -1e-7 - 1).abs().min() > 0.01


@over(("NCE", "NNCE", "NFL", "NNFL", "NGCE", "ANL-CE"))
def test_float16_gradients_survive_a_grad_scaler(terms, backend, device):
    logits, target = random_rows(2, 300, torch.float16, device, 1.0)
    leaf = logits.clone().requires_grad_()
    loss = ak.robust_loss(leaf, target, 1e-3 * terms)
    (loss * 65536).backward()
    _, grad = expected(logits.double(), target, terms)
    assert error(leaf.grad, grad * (65536e-3 / 2)) <= 5e-4
