"""The entropy of rows and log p_y beside a loss, and that neither is felt in the loss."""

import pytest
import torch

import anl_kernels as ak
from tests.cases import KINDS, over
from tests.helpers import random_rows, rows

BOTH = ("entropy", "log_p_y")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def by_formula(logits, target, ignore_index=-100):
    """(entropy, log p_y) in float64; a class with a logit of -inf is not there."""
    log_p = rows(logits.double()).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).nan_to_num(0).sum(-1)
    own = log_p.gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    ignored = target == ignore_index
    return entropy.masked_fill(ignored, 0), own.masked_fill(ignored, 0)


def loss_aux_and_grad(logits, target, terms, aux, **options):
    logits = logits.detach().requires_grad_()
    loss, made = ak.robust_loss(logits, target, terms, return_aux=aux, **options)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), made, grad


def assert_found(aux, logits, target, tolerance):
    for found, wanted in zip((aux.entropy, aux.log_p_y), by_formula(logits, target), strict=True):
        assert found.shape == target.shape
        assert not found.requires_grad
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@over(KINDS)
def test_values_and_an_unmoved_gradient(terms, reduction, dtype, backend, device):
    logits, target = random_rows(7, 83, dtype, device)
    target[2] = -100
    loss, aux, grad = loss_aux_and_grad(logits, target, terms, BOTH, reduction=reduction)
    accurate = dtype == torch.float64
    assert_found(aux, logits, target, 1e-12 if accurate else 1e-5)
    assert aux.term_losses is None
    assert aux.entropy.dtype == loss.dtype
    plain, _, plain_grad = loss_aux_and_grad(logits, target, terms, ("p_y",), reduction=reduction)
    torch.testing.assert_close(loss, plain, rtol=1e-12 if accurate else 1e-6, atol=0)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(grad, plain_grad, rtol=2 * eps, atol=eps * grad.abs().max().item())


@pytest.mark.parametrize(
    "shape", [(5,), (6, 5), (2, 5, 3), (2, 5, 3, 2), (0, 5), (2, 5, 0)], ids=str
)
def test_layouts(shape, backend, device):
    logits = 2 * torch.randn(shape, dtype=torch.float64, device=device)
    target = torch.randint(5, shape[:1] + shape[2:] if len(shape) > 1 else (), device=device)
    _, aux = ak.robust_loss(logits, target, ak.GCE(), return_aux=BOTH)
    assert_found(aux, logits, target, 1e-12)


@pytest.mark.parametrize("num_classes", [2, 40, 3000])
def test_classes_that_are_not_there(num_classes, backend, device):
    logits, target = random_rows(6, num_classes, torch.float32, device)
    absent = torch.rand(logits.shape, device=device) < 0.4
    absent.scatter_(1, target.unsqueeze(1), False)
    absent[0, target[0]] = True  # the label itself
    absent[0, (target[0] + 1) % num_classes] = False
    logits = logits.masked_fill(absent, -torch.inf)
    _, aux, grad = loss_aux_and_grad(logits, target, ak.MAE(), BOTH)
    assert grad.isfinite().all()
    assert aux.log_p_y[0] == -torch.inf
    assert_found(aux, logits, target, 1e-5)


def test_digits_near_certainty(backend, device):
    logits = torch.zeros(3, 50, device=device)
    logits[0, 0], logits[1, 1] = 40.0, 300.0
    target = torch.zeros(3, dtype=torch.int64, device=device)
    _, aux = ak.robust_loss(logits, target, ak.CE(), return_aux=BOTH)
    entropy, log_p_y = by_formula(logits, target)
    exact = -torch.log1p(49 * torch.exp(torch.tensor(-40.0, dtype=torch.float64)))
    torch.testing.assert_close(aux.log_p_y[0].double().cpu(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(aux.log_p_y[1:].double(), log_p_y[1:], rtol=1e-6, atol=0)
    torch.testing.assert_close(aux.entropy.double(), entropy, rtol=1e-5, atol=1e-15)


def test_with_all_others_and_in_any_order(backend, device):
    logits, target = random_rows(4, 30, torch.float32, device)
    terms = 2.0 * ak.NCE() + ak.NNCE()
    names = ("entropy", "denominators", "argmax", "term_losses", "log_p_y", "lse", "p_y")
    _, aux = ak.robust_loss(logits, target, terms, return_aux=names)
    _, plain = ak.robust_loss(
        logits, target, terms, return_aux=("denominators", "argmax", "term_losses", "lse", "p_y")
    )
    assert_found(aux, logits, target, 1e-5)
    for name in ("denominators", "argmax", "term_losses", "lse", "p_y"):
        torch.testing.assert_close(getattr(aux, name), getattr(plain, name))


def test_only_who_asks_is_told():
    logits, target = random_rows(4, 30)
    _, aux = ak.robust_loss(logits, target, ak.CE(), return_aux=True)
    assert aux.entropy is None
    assert aux.log_p_y is None


@pytest.mark.parametrize("over_what", ["row", "batch", "running"])
def test_balanced_losses(over_what, backend, device):
    logits, target = random_rows(5, 30, torch.float64, device)
    terms = ak.NCE() + 0.5 * ak.MAE()
    made = []
    for aux in (BOTH, ("p_y",)):
        running = torch.zeros(2, dtype=torch.float64, device=device)
        scale = ak.Balance(over_what, running=running) if over_what == "running" else over_what
        made.append(loss_aux_and_grad(logits, target, terms, aux, class_scale=scale))
    assert_found(made[0][1], logits, target, 1e-12)
    torch.testing.assert_close(made[0][0], made[1][0])
    torch.testing.assert_close(made[0][2], made[1][2])


def test_learned_weights_and_factors(backend, device):
    logits, target = random_rows(5, 30, torch.float64, device)
    grads = []
    for aux in (BOTH, ("p_y",)):
        weight = torch.tensor(0.7, dtype=torch.float64, device=device, requires_grad=True)
        scale = torch.rand(5, dtype=torch.float64, device=device).fill_(0.3).requires_grad_()
        leaf = logits.clone().requires_grad_()
        loss, found = ak.robust_loss(
            leaf, target, weight * ak.GCE() + ak.CE(), sample_weight=scale, return_aux=aux
        )
        grads.append(torch.autograd.grad(loss, (leaf, weight, scale), create_graph=True))
        grads[-1] += torch.autograd.grad(grads[-1][0].square().sum(), leaf)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    _, found = ak.robust_loss(logits, target, ak.CE(), return_aux=BOTH)
    assert_found(found, logits, target, 1e-12)


def test_two_labels_and_shares():
    logits, target = random_rows(5, 30, torch.float64)
    second = target.roll(1)
    target[0] = -100
    _, aux = ak.robust_loss(logits, target, ak.GCE(), target_b=second, lam=0.25, return_aux=BOTH)
    entropy, own = by_formula(logits, target)
    entropy_b, other = by_formula(logits, second)
    torch.testing.assert_close(aux.entropy, torch.maximum(entropy, entropy_b))
    torch.testing.assert_close(aux.log_p_y, 0.25 * own + 0.75 * other)
    shares = torch.rand(5, 30, dtype=torch.float64)
    shares[:, 3] = 0
    logits[:, 3] = -torch.inf
    _, aux = ak.robust_loss(logits, shares, ak.CE(), return_aux=BOTH)
    log_p = logits.log_softmax(1).nan_to_num(neginf=0)
    torch.testing.assert_close(aux.entropy, by_formula(logits, second)[0])
    torch.testing.assert_close(aux.log_p_y, (shares * log_p).sum(1))


def test_transforms():
    logits, target = random_rows(5, 30, torch.float64)

    def of_row(z, y):
        loss, aux = ak.robust_loss(z, y, ak.GCE(), return_aux=BOTH)
        return loss, (aux.entropy, aux.log_p_y)

    grads, found = torch.func.vmap(torch.func.grad(of_row, has_aux=True))(logits, target)
    _, _, wanted = loss_aux_and_grad(logits, target, ak.GCE(), ("p_y",), reduction="none")
    torch.testing.assert_close(grads, wanted)
    for one, other in zip(found, by_formula(logits, target), strict=True):
        torch.testing.assert_close(one, other)


def test_a_users_term():
    class Doubt(ak.Term):
        def rows(self, row):
            return row.rest.square()

    try:
        logits, target = random_rows(5, 30, torch.float64)
        _, aux, _ = loss_aux_and_grad(logits, target, Doubt(), BOTH)
        assert_found(aux, logits, target, 1e-12)
    finally:
        from anl_kernels.terms import REGISTRY

        del REGISTRY["Doubt"]
