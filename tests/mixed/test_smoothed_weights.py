"""Class weights with label smoothing are torch's: weights of the smoothed classes."""

import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak
from tests.helpers import error
from tests.mixed.definitions import gradient


@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(5,), (6, 5), (2, 5, 3, 4)], ids=str)
def test_it_is_torchs(shape, reduction, smoothing, ignore_index, form, backend, device):
    logits = 3 * torch.randn(shape, dtype=torch.float64, device=device)
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(5, rows, device=device)
    if rows:
        target[0] = ignore_index
    else:
        target = target.clamp(min=3)
    options = {
        "weight": torch.rand(5, dtype=torch.float64, device=device) + 0.1,
        "ignore_index": ignore_index,
        "reduction": reduction,
    }
    ours = gradient(lambda z: ak.robust_loss(z, target, ak.CE(smoothing), **options), logits)
    theirs = gradient(
        lambda z: F.cross_entropy(z, target, label_smoothing=smoothing, **options), logits
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_further_from_the_truth_than_torch(dtype, offset, swept, kernels, device):
    logits = (3 * torch.randn(8, 50, device=device, dtype=torch.float64) + offset).to(dtype)
    target = torch.randint(50, (8,), device=device)
    weight = torch.rand(50, device=device).to(dtype)

    def torchs(z):
        return F.cross_entropy(z, target, weight.to(z.dtype), label_smoothing=0.2)

    truth, theirs = gradient(torchs, logits.double()), gradient(torchs, logits)
    ours = gradient(lambda z: ak.robust_loss(z, target, ak.CE(0.2), weight=weight), logits)
    eps = torch.finfo(dtype).eps
    assert error(ours[0], truth[0]) <= error(theirs[0], truth[0]) + 4 * torch.finfo().eps
    assert error(ours[1], truth[1]) <= error(theirs[1], truth[1]) + 2 * eps


def test_the_other_terms_of_a_sum_are_weighed_by_rows(form, backend, device):
    logits = torch.randn(6, 5, dtype=torch.float64, device=device)
    target = torch.randint(5, (6,), device=device)
    weight = torch.rand(5, dtype=torch.float64, device=device)
    terms = 2.0 * ak.CE(0.1) + 3.0 * ak.NNCE() + 0.1 * ak.ZLoss()
    ours = gradient(lambda z: ak.robust_loss(z, target, terms, weight=weight), logits)

    def apart(z):
        smoothed = F.cross_entropy(z, target, weight, label_smoothing=0.1)
        others = ak.robust_loss(z, target, 3.0 * ak.NNCE() + 0.1 * ak.ZLoss(), weight=weight)
        return 2 * smoothed + others

    torch.testing.assert_close(ours, gradient(apart, logits), rtol=1e-12, atol=1e-12)


def test_a_class_that_is_not_there(form, backend, device):
    logits = torch.randn(4, 5, dtype=torch.float64, device=device)
    logits[:, 4] = -torch.inf
    target = torch.randint(4, (4,), device=device)
    weight = torch.rand(5, dtype=torch.float64, device=device)
    ours = gradient(lambda z: ak.robust_loss(z, target, ak.CE(0.1), weight=weight), logits)
    wanted = gradient(
        lambda z: F.cross_entropy(z[:, :4], target, weight[:4], label_smoothing=0.1), logits
    )
    torch.testing.assert_close(ours, wanted)


def test_gradgradcheck(form, device):
    logits = torch.randn(4, 5, dtype=torch.float64, device=device, requires_grad=True)
    target = torch.tensor([0, 1, -100, 4], device=device)
    weight = torch.rand(5, dtype=torch.float64, device=device, requires_grad=True)

    def loss(z, weight):
        return ak.robust_loss(z, target, ak.CE(0.1) + ak.NCE(), weight=weight)

    assert torch.autograd.gradcheck(loss, (logits, weight))
    assert torch.autograd.gradgradcheck(loss, (logits, weight), fast_mode=True)
    fixed = weight.detach()
    assert torch.autograd.gradgradcheck(lambda z: loss(z, fixed), logits, fast_mode=True)
