"""First and second derivatives in float64, numerically and by differentiating the formulas.

A detached factor (the focal weight of the official code, DFT's p_y) makes the gradient differ
from the slope of the loss by definition, so no numerical derivative can check it: there the
gradient, and the gradient of the gradient, are those of autograd through the formula that
detaches the same factor.
"""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import anl_kernels as ak
from tests.cases import CASES, is_detached, over
from tests.formulas import evaluate
from tests.helpers import error, expected, loss_and_grad, random_rows

REDUCTIONS = ("none", "mean")


def differentiable(terms):
    return not is_detached(terms)


def problem(device, num_rows=3, num_classes=5):
    logits, target = random_rows(num_rows, num_classes, torch.float64, device, scale=2.0)
    target[-1] = -100
    sample_weight = torch.rand(num_rows, dtype=torch.float64, device=device) + 0.5
    return logits.requires_grad_(), target, sample_weight.requires_grad_()


def labelled_loss(target, terms, reduction):
    def loss(logits, sample_weight):
        return ak.robust_loss(
            logits, target, terms, sample_weight=sample_weight, reduction=reduction
        )

    return loss


@pytest.mark.parametrize("reduction", REDUCTIONS)
@over(where=differentiable)
def test_gradcheck(terms, reduction, backend, device):
    logits, target, sample_weight = problem(device)
    loss = labelled_loss(target, terms, reduction)
    assert gradcheck(loss, (logits, sample_weight), fast_mode=reduction == "mean")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@over(where=differentiable)
def test_gradgradcheck(terms, reduction, backend, device):
    logits, target, sample_weight = problem(device, 2, 4)
    loss = labelled_loss(target, terms, reduction)
    assert gradgradcheck(loss, (logits, sample_weight), fast_mode=True)


@over(where=lambda terms: len(terms) == 2)
def test_gradcheck_of_term_weights(terms, backend, device):
    logits, target, _ = problem(device)
    logits = logits.detach().requires_grad_(differentiable(terms))
    weights = [torch.tensor(w, dtype=torch.float64, requires_grad=True) for w, _ in terms]

    def loss(logits, *weights):
        weighted = sum(w * term for w, (_, term) in zip(weights, terms, strict=True))
        return ak.robust_loss(logits, target, weighted)

    assert gradcheck(loss, (logits, *weights))
    if differentiable(terms):
        assert gradgradcheck(loss, (logits, *weights), fast_mode=True)


@over()
def test_gradient_of_the_formula(terms, backend, device):
    logits, target = random_rows(6, 7, torch.float64, device)
    losses, grad = expected(logits, target, terms)
    ours, our_grad = loss_and_grad(logits, target, terms, reduction="none")
    assert error(ours, losses) <= 1e-13
    assert error(our_grad, grad) <= 1e-13
    assert error(loss_and_grad(logits, target, terms, reduction="sum")[1], grad) <= 1e-13


@pytest.mark.parametrize("reduction", REDUCTIONS)
@over(where=is_detached)
def test_second_gradient_of_the_formula(terms, reduction, backend, device):
    logits, target = random_rows(3, 5, torch.float64, device)
    direction = torch.randn_like(logits)

    def second(loss):
        z = logits.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss(z), z, create_graph=True)
        return torch.autograd.grad((grad * direction).sum(), z)[0]

    theirs = second(lambda z: evaluate(terms, z, target).sum())
    divisor = 3 if reduction == "mean" else 1
    ours = second(lambda z: ak.robust_loss(z, target, terms, reduction=reduction).sum() * divisor)
    assert error(ours, theirs) <= 1e-10


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("term", [ak.FL, ak.NFL, ak.NNFL])
def test_true_focal_gradient_is_finite_at_certainty(term, gamma, backend, device):
    logits = torch.tensor([[200.0, 0, 0], [0, 200.0, 0]], dtype=torch.float64, device=device)
    target = torch.tensor([0, 0], device=device)
    loss, grad = loss_and_grad(logits, target, term(gamma=gamma, detach_weight=False))
    assert loss.isfinite()
    assert grad.isfinite().all()


def test_third_derivative_by_the_reference(device):
    logits, target, _ = problem(device, 2, 4)
    logits = logits.detach().requires_grad_()
    with ak.use_backend("reference"):
        loss = ak.robust_loss(logits, target, CASES["ANL-CE"])
    (first,) = torch.autograd.grad(loss, logits, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), logits, create_graph=True)
    (third,) = torch.autograd.grad(second.square().sum(), logits)
    assert third.isfinite().all()
