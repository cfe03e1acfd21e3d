"""``inplace=True``: the gradient takes the logits' memory, and nobody is lied to."""

import pytest
import torch

import anl_kernels as ak
from tests.cases import CASES, over
from tests.helpers import loss_and_grad, random_rows

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TERMS = CASES["ANL-CE"]


def computed_logits(device, dtype=torch.float32):
    """(leaf, logits made from it by an operation that does not save them, target)."""
    leaf, target = random_rows(4, 7, dtype, device)
    leaf.requires_grad_()
    return leaf, leaf * 1, target


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_lands_in_the_logits(dtype, reduction, kernels, device):
    leaf, logits, target = computed_logits(device, dtype)
    _, wanted = loss_and_grad(leaf, target, TERMS, reduction=reduction)
    seen = []
    logits.register_hook(lambda grad: seen.append((grad.data_ptr(), grad.clone())))
    version = logits._version
    ak.robust_loss(logits, target, TERMS, reduction=reduction, inplace=True).sum().backward()
    assert seen[0][0] == logits.data_ptr()
    assert torch.equal(seen[0][1], wanted)
    assert torch.equal(leaf.grad, wanted)
    assert logits._version > version


@pytest.mark.parametrize("reduction", ["mean", "none"])
@over(("CE", "CE-smoothed", "NNCE", "AMSE", "ZLoss", "all"))
def test_every_kind_of_term(terms, reduction, backend, device):
    leaf, logits, target = computed_logits(device)
    _, wanted = loss_and_grad(leaf, target, terms, reduction=reduction)
    ak.robust_loss(logits, target, terms, reduction=reduction, inplace=True).sum().backward()
    assert torch.equal(leaf.grad, wanted)


@pytest.mark.parametrize("upstream", [2.5, 0.0])
def test_upstream_gradient(upstream, backend, device):
    leaf, logits, target = computed_logits(device)
    _, wanted = loss_and_grad(leaf, target, TERMS)
    (upstream * ak.robust_loss(logits, target, TERMS, inplace=True)).backward()
    torch.testing.assert_close(leaf.grad, upstream * wanted)


def test_an_operation_that_saved_the_logits_raises(kernels, device):
    leaf, _, target = computed_logits(device)
    logits = leaf.exp()
    loss = ak.robust_loss(logits, target, TERMS, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Fails for the one-pass form: it saves the logits after it has overwritten them, so their version
# looks right and the second backward differentiates at the gradient.
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_second_backward_raises(dtype, reduction, kernels, device):
    _, logits, target = computed_logits(device, dtype)
    loss = ak.robust_loss(logits, target, TERMS, reduction=reduction, inplace=True).sum()
    torch.autograd.grad(loss, logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.grad(loss, logits)


def test_a_leaf_is_refused(kernels, device):
    leaf, _, target = computed_logits(device)
    with pytest.raises(ValueError, match="leaf"):
        ak.robust_loss(leaf, target, TERMS, inplace=True)


@pytest.mark.parametrize("dim", [0, 1])
def test_overlapping_memory_is_refused(dim, kernels, device):
    leaf = torch.randn((1, 7) if dim == 0 else (4, 1), device=device, requires_grad=True)
    logits = (leaf * 1).expand(4, 7)
    target = torch.zeros(4, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="expanded"):
        ak.robust_loss(logits, target, TERMS, inplace=True)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_is_written_without_a_gradient(reduction, backend, device):
    logits, target = random_rows(4, 7, torch.float32, device)
    options = {"inplace": True, "reduction": reduction}
    before, version = logits.clone(), logits._version
    ak.robust_loss(logits, target, TERMS, **options)
    with torch.no_grad():
        ak.robust_loss(logits.requires_grad_(), target, TERMS, **options)
    assert torch.equal(logits.detach(), before)
    assert logits._version == version


def test_ignored_rows_get_zeros(kernels, device):
    leaf, logits, target = computed_logits(device)
    target[2] = -100
    ak.robust_loss(logits, target, TERMS, inplace=True).backward()
    assert not leaf.grad[2].any()
    assert leaf.grad[0].any()


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_dimensions_that_do_not_collapse_are_refused(reduction, transpose, kernels, device):
    leaf = torch.randn(2, 5, 3, 4, device=device, requires_grad=True)
    target = torch.randint(5, (2, 4, 3) if transpose else (2, 2, 3), device=device)
    logits = leaf * 1
    view = logits.transpose(2, 3) if transpose else logits[:, :, :2, :3]
    with pytest.raises(ValueError, match="inplace=True needs logits whose dimensions"):
        ak.robust_loss(view, target, TERMS, inplace=True, reduction=reduction)
    assert torch.equal(logits, leaf)


def test_tensor_weights_and_sample_weight(kernels, device):
    leaf, logits, target = computed_logits(device)
    alpha = torch.tensor(2.0, device=device, requires_grad=True)
    sample_weight = torch.rand(4, device=device, requires_grad=True)
    options = {"sample_weight": sample_weight}
    inputs = (leaf, alpha, sample_weight)
    terms = alpha * ak.NCE() + ak.MAE()
    wanted = torch.autograd.grad(ak.robust_loss(leaf, target, terms, **options), inputs)
    loss = ak.robust_loss(logits, target, terms, inplace=True, **options)
    for grad, value in zip(torch.autograd.grad(loss, inputs), wanted, strict=True):
        torch.testing.assert_close(grad, value)
