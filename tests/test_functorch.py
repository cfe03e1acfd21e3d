import pytest
import torch
from torch.func import functional_call, grad, grad_and_value, hessian, jacrev, vjp, vmap

import anl_kernels as ak
from tests.cases import CASES
from tests.helpers import loss_and_grad, random_rows

# vmap runs an operator without a batching rule once for each sample, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

TERMS = CASES["ANL-CE"]
REDUCTIONS = ("mean", "none")


@pytest.fixture
def problem(device):
    return random_rows(3, 5, torch.float64, device, scale=2.0)


def loss_of(target, reduction="mean", terms=TERMS):
    return lambda z: ak.robust_loss(z, target, terms, reduction=reduction)


def test_grad(backend, problem):
    logits, target = problem
    loss, wanted = loss_and_grad(logits, target, TERMS)
    by_func, value = grad_and_value(loss_of(target))(logits)
    torch.testing.assert_close(by_func, wanted)
    torch.testing.assert_close(value, loss)
    torch.testing.assert_close(grad(loss_of(target))(logits), wanted)


@pytest.mark.parametrize("terms", [TERMS, CASES["ANL-FL"], CASES["CE-smoothed"]], ids=str)
def test_vmap_of_grad_gives_gradients_of_each_sample(terms, backend, problem):
    logits, target = problem

    def loss(z, y):
        return ak.robust_loss(z, y, terms)

    _, wanted = loss_and_grad(logits, target, terms, reduction="none")
    torch.testing.assert_close(vmap(grad(loss))(logits, target), wanted)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_vmap_over_batches(reduction, backend, device):
    logits = torch.randn(4, 3, 5, dtype=torch.float64, device=device)
    target = torch.randint(5, (4, 3), device=device)
    losses = vmap(lambda z, y: ak.robust_loss(z, y, TERMS, reduction=reduction))(logits, target)
    wanted = [
        ak.robust_loss(z, y, TERMS, reduction=reduction)
        for z, y in zip(logits, target, strict=True)
    ]
    torch.testing.assert_close(losses, torch.stack(wanted))


def test_vjp(backend, device, problem):
    logits, target = problem
    upstream = torch.randn(3, dtype=torch.float64, device=device)
    _, pullback = vjp(loss_of(target, "none"), logits)
    _, rows = loss_and_grad(logits, target, TERMS, reduction="none")
    torch.testing.assert_close(pullback(upstream)[0], upstream[:, None] * rows)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_jacrev(reduction, backend, problem):
    logits, target = problem
    jacobian = jacrev(loss_of(target, reduction))(logits)
    wanted = torch.autograd.functional.jacobian(loss_of(target, reduction), logits)
    torch.testing.assert_close(jacobian, wanted)


def reference_hessian(logits, target):
    with ak.use_backend("reference"):
        return torch.autograd.functional.hessian(loss_of(target), logits)


def test_jacrev_of_jacrev(backend, problem):
    logits, target = problem
    ours = jacrev(jacrev(loss_of(target)))(logits)
    torch.testing.assert_close(ours, reference_hessian(logits, target))


def test_grad_of_a_function_of_grad(backend, problem):
    logits, target = problem
    norm = grad(lambda z: grad(loss_of(target))(z).square().sum())
    full = reference_hessian(logits, target)
    _, first = loss_and_grad(logits, target, TERMS)
    torch.testing.assert_close(norm(logits), 2 * torch.einsum("ijkl,ij->kl", full, first))


def test_hessian_by_forward_over_reverse(backend, problem):
    logits, target = problem
    ours = hessian(loss_of(target))(logits)
    torch.testing.assert_close(ours, jacrev(jacrev(loss_of(target)))(logits))


# Fails: RobustLoss reads the parameter through self.terms, not through the registered name.
def test_functional_call_of_a_module(backend, problem):
    logits, target = problem
    alpha = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64, device=logits.device))
    module = ak.RobustLoss(alpha * ak.NCE() + 1.0 * ak.MAE())
    by_alpha = grad(lambda a: functional_call(module, {"term_weight_0": a}, (logits, target)))(
        alpha.detach()
    )
    torch.testing.assert_close(by_alpha, ak.robust_loss(logits, target, ak.NCE()))
