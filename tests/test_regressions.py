"""What a review broke once."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import anl_kernels as ak
from anl_kernels.backends.choice import CACHE_VARIABLE
from anl_kernels.terms import REGISTRY, Term
from tests.helpers import loss_and_grad, random_rows

ANL = 5.0 * ak.NCE() + 5.0 * ak.NNCE(1e-3)


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_an_offset_common_to_all_logits_costs_no_digits(offset, backend, device):
    logits, target = random_rows(6, 50, torch.float32, device)
    logits = logits + offset  # rounds: the sum is what both see
    loss = ak.robust_loss(logits, target, ak.CE())
    torch.testing.assert_close(loss, F.cross_entropy(logits, target), rtol=1e-6, atol=0)


def test_a_row_of_the_lowest_number_is_uniform(backend, device):
    logits = torch.full((1, 8), torch.finfo(torch.float32).min, device=device)
    target = torch.zeros(1, dtype=torch.int64, device=device)
    assert ak.nce(logits, target).item() == pytest.approx(1 / 8)


@pytest.mark.parametrize("term", [ak.NCE(), ak.NFL()], ids=["NCE", "NFL"])
@pytest.mark.parametrize("at_target", [-torch.inf, 0.5])
def test_classes_at_the_lowest_number_leave_the_gradient_finite(term, at_target, backend, device):
    logits, target = random_rows(3, 9, torch.float32, device)
    logits.scatter_(1, (target[:, None] + torch.arange(1, 4, device=device)) % 9, -3.4028e38)
    logits.requires_grad_()
    ak.robust_loss(logits, target, term).backward()
    assert logits.grad.isfinite().all()


def test_an_inplace_gradient_differentiates_as_any_other(backend, device):
    leaf = torch.randn(3, 5, dtype=torch.float64, device=device, requires_grad=True)
    target = torch.tensor([0, 4, 2], device=device)

    def second(inplace):
        loss = ak.robust_loss(leaf * 1, target, ANL, reduction="none", inplace=inplace)
        (grad,) = torch.autograd.grad(loss.sum(), leaf, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), leaf)[0]

    torch.testing.assert_close(second(inplace=True), second(inplace=False))


@pytest.mark.parametrize("option", ["weight", "sample_weight"])
def test_a_nan_weight_of_an_ignored_row_does_not_count(option, backend, device):
    logits, target = random_rows(4, 5, torch.float32, device)
    target[:] = torch.tensor([0, 255, 1, 2])
    weight = torch.ones(5 if option == "weight" else 4, device=device)
    weight[4 if option == "weight" else 1] = torch.nan
    loss = ak.robust_loss(logits, target, ANL, ignore_index=255, **{option: weight})
    assert loss.isfinite()


def test_no_rows_have_auxiliary_outputs_too(backend, device):
    logits, target = torch.empty(0, 5, device=device), torch.empty(0, dtype=torch.int64)
    _, aux = ak.robust_loss(logits, target.to(device), ANL, return_aux=True)
    assert aux.term_losses.shape == (2, 0)


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="a term named GCE exists"):
        type("GCE", (Term,), {})
    assert REGISTRY["GCE"] is ak.GCE


def test_a_class_of_a_users_own_borrows_no_kernel(kernels, device):
    logits, target = random_rows(4, 5, torch.float32, device)
    try:
        for name, base in (("Mae", Term), ("MyCE", ak.CE)):
            mine = type(name, (base,), {"rows": lambda self, row: 2 * row.rest})()
            with pytest.raises(RuntimeError, match=f"no kernel for {name}"):
                ak.robust_loss(logits, target, mine)
    finally:
        REGISTRY.pop("Mae", None)
        REGISTRY.pop("MyCE", None)


def test_forward_mode_is_right(kernels, device):
    logits, target = random_rows(4, 5, torch.float32, device)
    loss, grad = loss_and_grad(logits, target, ak.CE())
    made = torch.func.jvp(lambda z: ak.robust_loss(z, target, ak.CE()), (logits,), (logits,))
    torch.testing.assert_close(made, (loss, (grad * logits).sum()))


def test_a_parameter_of_a_term_cannot_be_a_tensor():
    with pytest.raises(TypeError, match="GCE: q must be a number"):
        ak.RobustLoss(ak.GCE(q=torch.nn.Parameter(torch.tensor(0.7))))


@pytest.mark.parametrize("num_classes", [4, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_row_masked_with_the_lowest_number_is_a_uniform_row(dtype, num_classes, backend, device):
    lowest = torch.full((2, num_classes), torch.finfo(dtype).min, dtype=dtype, device=device)
    target = torch.tensor([0, num_classes - 1], device=device)
    ours = loss_and_grad(lowest, target, ANL)
    uniform = loss_and_grad(torch.zeros_like(lowest), target, ANL)
    for actual, wanted in zip(ours, uniform, strict=True):
        torch.testing.assert_close(actual, wanted)
    torch.testing.assert_close(ak.softmax(lowest), torch.softmax(lowest, 1))


def test_unfolded_logits_cannot_hold_their_gradient(kernels, device):
    windows = (torch.randn(12, device=device, requires_grad=True) * 1).unfold(0, 4, 1)
    with pytest.raises(ValueError, match="overlapping"):
        ak.robust_loss(windows, torch.arange(9, device=device) % 4, ak.CE(), inplace=True)


def test_labels_without_values_are_not_looked_at(backend):
    with FakeTensorMode():
        loss = ak.nce(torch.empty(3, 4), torch.zeros(3, dtype=torch.long))
    assert loss.shape == ()


def test_traced_by_make_fx(backend, device):
    logits, target = random_rows(4, 5, torch.float32, device)
    traced = make_fx(lambda z: ak.robust_loss(z, target, ANL))(logits)
    torch.testing.assert_close(traced(2 * logits), ak.robust_loss(2 * logits, target, ANL))


def test_a_cache_limit_that_is_no_number_is_named_and_not_used():
    code = "import anl_kernels as ak, torch; ak.nce(torch.randn(2, 3), torch.tensor([0, 1]))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {CACHE_VARIABLE: "1.5", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"{CACHE_VARIABLE} must be a whole number of MiB, got '1.5'" in result.stderr


@pytest.mark.parametrize("term", [ak.NFL(detach_weight=False), ak.NNFL(detach_weight=False)])
def test_another_class_that_is_nearly_certain(term, backend, device):
    """1 - p has no digits left there, which the slope of (1 - p)^gamma would divide by."""
    logits = (30 * torch.randn(1000, 3, dtype=torch.float64, device=device)).float()
    target = torch.randint(3, (1000,), device=device)
    _, grad = loss_and_grad(logits, target, term, reduction="none")
    with ak.use_backend("reference"):
        _, exact = loss_and_grad(logits.double(), target, term, reduction="none")
    assert (grad - exact).abs().max() <= 1e-5
