"""The factor is a constant: second derivatives, and forward ones, are those of factor * loss."""

import pytest
import torch
from torch.autograd import forward_ad, gradcheck
from torch.func import functional_call, grad, jvp, vmap

import anl_kernels as ak
from tests.balance.definitions import (
    IGNORE,
    MODES,
    SOME,
    balance_of,
    factors_of,
    losses_of_terms,
    problem,
    weights_of,
)
from tests.cases import CASES, is_detached
from tests.helpers import error, loss_and_grad

modes = pytest.mark.parametrize("mode", MODES)
STATED = {name: SOME[name] for name in ("ANL-CE", "mixed")}


def over_stated():
    return pytest.mark.parametrize("terms", STATED.values(), ids=STATED)


def surrogate(logits, target, terms, factors, row_scale):
    weights = weights_of(terms, logits)[:, None]
    return ((weights * factors * losses_of_terms(logits, target, terms)).sum(0) * row_scale).sum()


@pytest.mark.parametrize("reduction", ["none", "mean"])
@modes
@over_stated()
def test_double_backward(terms, mode, reduction, quick, device):
    logits, target = problem((4, 6), device=device)
    balance = balance_of(mode, terms, 6, device, training=False)
    up = torch.rand(4 if reduction == "none" else (), dtype=torch.float64, device=device)
    scale = up if reduction == "none" else up / (target != IGNORE).sum()
    direction = torch.randn_like(logits)
    factors = factors_of(logits, target, terms, mode, balance.running)
    results = []
    for ours in (True, False):
        leaf = logits.clone().requires_grad_()
        if ours:
            options = {"class_scale": balance, "reduction": reduction}
            value = (ak.robust_loss(leaf, target, terms, **options) * up).sum()
        else:
            value = surrogate(leaf, target, terms, factors, scale)
        (first,) = torch.autograd.grad(value, leaf, create_graph=True)
        (second,) = torch.autograd.grad((first * direction).sum(), leaf)
        results.append((first.detach(), second))
    for ours, wanted in zip(*results, strict=True):
        assert error(ours, wanted) <= 1e-11


@modes
def test_double_backward_by_weights(mode, quick, device):
    """Those of rows and terms enter the plain value alone, and their gradient is a value too."""
    logits, target = problem((4, 6), device=device)
    balance = balance_of(mode, 0.7 * ak.NCE() + ak.NNCE(), 6, device, training=False)
    numbers = {"dtype": torch.float64, "device": device}
    given = [torch.rand(4, **numbers), torch.tensor(0.7, **numbers)]

    def loss(sample_weight, alpha):
        terms = alpha * ak.NCE() + ak.NNCE()
        return ak.robust_loss(
            logits, target, terms, sample_weight=sample_weight, class_scale=balance
        )

    assert gradcheck(loss, [tensor.requires_grad_() for tensor in given])


@over_stated()
def test_gradcheck_where_the_factor_is_a_function(terms, quick, device):
    """A running mean that stays, its factor divided out of the weight, leaves the plain loss."""
    logits, target = problem((3, 5), device=device)
    state = torch.tensor([1 / 5 if t.normalised else 3.0 for t in terms.terms], device=device)
    balance = ak.Balance("running", running=state.double(), training=False)
    assert not is_detached(terms)
    assert gradcheck(
        lambda z: ak.robust_loss(z, target, terms, class_scale=balance), logits.requires_grad_()
    )


@modes
def test_torch_func(mode, backend, device):
    terms = CASES["ANL-CE"]
    logits, target = problem((4, 6), device=device)
    balance = balance_of(mode, terms, 6, device, training=False)

    def loss(z, y):
        return ak.robust_loss(z, y, terms, class_scale=balance)

    value, wanted = loss_and_grad(logits, target, terms, class_scale=balance)
    torch.testing.assert_close(grad(loss)(logits, target), wanted)
    tangent = torch.randn_like(logits)
    primal, derivative = jvp(lambda z: loss(z, target), (logits,), (tangent,))
    torch.testing.assert_close(primal, value)
    torch.testing.assert_close(derivative, (wanted * tangent).sum())
    with forward_ad.dual_level():
        made = loss(forward_ad.make_dual(logits, tangent), target)
        torch.testing.assert_close(forward_ad.unpack_dual(made).tangent, derivative)
    batches, labels = logits.view(2, 2, 6), target.view(2, 2)
    each = [
        loss_and_grad(*pair, terms, class_scale=balance)
        for pair in zip(batches, labels, strict=True)
    ]
    torch.testing.assert_close(vmap(loss)(batches, labels), torch.stack([v for v, _ in each]))
    by_batch = vmap(grad(loss))(batches, labels)
    torch.testing.assert_close(by_batch, torch.stack([g for _, g in each]))


@modes
def test_forward_over_reverse_is_reverse_over_reverse(mode, quick, device):
    """A tangent must not find its way into the factor."""
    logits, target = problem((4, 6), device=device)
    balance = balance_of(mode, SOME["mixed"], 6, device, training=False)
    tangent = torch.randn_like(logits)

    def loss(z):
        return ak.robust_loss(z, target, SOME["mixed"], class_scale=balance)

    _, forwards = jvp(grad(loss), (logits,), (tangent,))
    leaf = logits.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (backwards,) = torch.autograd.grad((first * tangent).sum(), leaf)
    assert error(forwards, backwards) <= 1e-11


def test_a_running_mean_is_an_argument_of_transforms(quick, device):
    logits, target = problem((4, 6), device=device)
    module = ak.RobustLoss(CASES["ANL-CE"], class_scale="running").to(device).double()

    def loss(z, buffers):
        return functional_call(module, buffers, (z, target))

    state = {"running_summands": torch.zeros(2, dtype=torch.float64, device=device)}
    made = grad(loss)(logits, state)
    _, wanted = loss_and_grad(logits, target, CASES["ANL-CE"], class_scale=balance_at_zero(device))
    torch.testing.assert_close(made, wanted)
    assert not module.running_summands.any()
    for call in (lambda: grad(module)(logits, target), lambda: vmap(module)(logits, target)):
        with pytest.raises(RuntimeError, match=r"class_scale='running' .* eval\(\)"):
            call()
    module.eval()
    grad(module)(logits, target)


def balance_at_zero(device):
    return ak.Balance("running", running=torch.zeros(2, dtype=torch.float64, device=device))
