"""Every form of the GPU kernels, whichever a row's length would have chosen."""

import pytest
import torch

import anl_kernels as ak
from tests.cases import CASES, over
from tests.forms import FORMS, checked
from tests.helpers import error, expected, loss_and_grad, random_rows

AUX = ("term_losses", "lse", "p_y", "argmax", "probs")


@pytest.fixture(params=FORMS, ids="-".join)
def form(request, monkeypatch):
    with checked(*request.param, monkeypatch):
        yield request.param


@over()
def test_values_of_terms(terms, form, device, poisoned):
    assert_values(terms, torch.float64, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@over(("CE-smoothed", "ANL-CE", "AMSE"))
def test_values_of_dtypes(terms, dtype, form, device, poisoned):
    assert_values(terms, dtype, device)


def assert_values(terms, dtype, device):
    logits, target = random_rows(2, 37, dtype, device)
    losses, grad = expected(logits.double(), target, terms)
    loss, ours = loss_and_grad(logits, target, terms, reduction="sum")
    assert error(loss, losses.sum()) <= (1e-12 if dtype == torch.float64 else 2e-6)
    rounding = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 4e-3}[dtype]
    assert error(ours, grad) <= rounding


@pytest.mark.parametrize(("num_rows", "num_classes"), [(1, 61), (3, 1), (2, 2), (5, 16), (3, 17)])
def test_sizes(num_rows, num_classes, form, device, poisoned):
    logits, target = random_rows(num_rows, num_classes, torch.float64, device)
    terms = CASES["ANL-CE"]
    losses, grad = expected(logits, target, terms)
    if num_classes == 1:
        losses, grad = torch.full_like(losses, 5.0), torch.zeros_like(grad)  # NCE 1, NNCE 0
    for reduction in ("sum", "none"):
        loss, ours = loss_and_grad(logits, target, terms, reduction=reduction)
        torch.testing.assert_close(loss, losses.sum() if reduction == "sum" else losses)
        torch.testing.assert_close(ours, grad)


def test_class_first(form, device, poisoned):
    logits = torch.randn(2, 19, 3, device=device)
    target = torch.randint(19, (2, 3), device=device)
    target[0, 1] = -100
    terms = CASES["ANL-CE"] + ak.CE(0.1) + ak.AMSE(3.0)
    counted = target != -100
    losses, grad = expected(logits.double(), target.clamp(min=0), terms, counted.double())
    loss, ours = loss_and_grad(logits, target, terms, reduction="none")
    assert error(loss, losses * counted) <= 1e-6
    assert error(ours, grad) <= 1e-6


@pytest.mark.parametrize("ignored", [False, True])
def test_aux(ignored, form, device, poisoned):
    logits, target = random_rows(4, 37, torch.float32, device)
    if ignored:
        target[1] = -100
    leaf = logits.clone().requires_grad_()
    loss, aux = ak.robust_loss(leaf, target, CASES["ANL-CE"], return_aux=AUX)
    loss.backward()
    with ak.use_backend("reference"):
        wanted_loss, wanted = ak.robust_loss(logits, target, CASES["ANL-CE"], return_aux=AUX)
    torch.testing.assert_close(loss.detach(), wanted_loss)
    torch.testing.assert_close(aux.lse, logits.logsumexp(1))
    torch.testing.assert_close(aux.probs, logits.softmax(1))
    assert torch.equal(aux.argmax, logits.argmax(1))
    for name in ("term_losses", "p_y"):
        torch.testing.assert_close(getattr(aux, name), getattr(wanted, name))


def test_argmax_takes_the_first_of_equals(form, device):
    logits = torch.zeros(5, 40, device=device)
    for row, best in enumerate([(0, 39), (7, 8), (15, 16, 31), (33, 34), range(40)]):
        logits[row, list(best)] = 2.0
    for label in (0, 8, 16, 34, 39):
        target = torch.full((5,), label, device=device)
        _, aux = ak.robust_loss(logits, target, ak.CE(), return_aux="argmax")
        assert aux.argmax.tolist() == [0, 7, 15, 33, 0]


@over(("CE-smoothed", "ANL-CE", "AMSE"))
def test_missing_classes(terms, form, device, poisoned):
    logits, target = random_rows(3, 40, torch.float64, device)
    present = torch.ones(40, dtype=torch.bool, device=device)
    present[torch.tensor([0, 3, *range(16, 32), 39])] = False  # a whole part, and both ends
    target = present.nonzero()[target % int(present.sum()), 0]
    places = present.cumsum(0)[target] - 1
    losses, grad = expected(logits[:, present], places, terms)
    masked = logits.masked_fill(~present, -torch.inf)
    for reduction in ("sum", "none"):
        loss, ours = loss_and_grad(masked, target, terms, reduction=reduction)
        torch.testing.assert_close(loss, losses.sum() if reduction == "sum" else losses)
        torch.testing.assert_close(ours[:, present], grad)
        assert not ours[:, ~present].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("low", [-1e4, -1e9, -1e34, "lowest"])
@over(("NCE", "NNCE", "ANL-CE", "CE-smoothed"))
def test_a_target_far_below_the_others(terms, low, dtype, form, device):
    """Vocabularies are padded with logits of -1e9, or the lowest number there is."""
    logits, target = random_rows(3, 37, dtype, device)
    low = torch.finfo(dtype).min if low == "lowest" else low
    logits[1, target[1]] = low
    loss, grad = loss_and_grad(logits, target, terms, reduction="none")
    with ak.use_backend("reference"):
        wanted, wanted_grad = loss_and_grad(logits.double(), target, terms, reduction="none")
    if low > -1e30:  # further down the reference overflows, and NCE is 1 to the last digit
        torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
        tolerance = {torch.bfloat16: 1e-2, torch.float32: 1e-5, torch.float64: 1e-9}[dtype]
        for row in range(3):
            assert error(grad[row], wanted_grad[row]) <= tolerance
    else:
        assert not loss[[0, 2]].isnan().any()
        assert not grad.isnan().any()
        if len(terms) == 1 and isinstance(terms.terms[0], (ak.NCE, ak.NNCE)):
            assert loss[1].item() == pytest.approx(1.0)


def test_weights_of_rows_and_terms(form, device, poisoned):
    logits, target = random_rows(5, 37, torch.float64, device)
    sample_weight = torch.rand(5, dtype=torch.float64, device=device)
    weights = torch.rand(2, dtype=torch.float64, device=device)
    terms = weights[0] * ak.NCE() + weights[1] * ak.NNCE()
    plain = weights[0].item() * ak.NCE() + weights[1].item() * ak.NNCE()
    losses, grad = expected(logits, target, plain, sample_weight)
    for reduction in ("sum", "none"):
        options = {"sample_weight": sample_weight, "reduction": reduction}
        loss, ours = loss_and_grad(logits, target, terms, **options)
        weighted = losses * sample_weight
        torch.testing.assert_close(loss, weighted.sum() if reduction == "sum" else weighted)
        torch.testing.assert_close(ours, grad)


def test_ignored_rows_are_not_read(form, device, poisoned):
    logits, target = random_rows(4, 37, torch.float32, device)
    logits[1] = torch.nan
    target[1] = -100
    for reduction in ("mean", "none"):
        loss, grad = loss_and_grad(logits, target, CASES["ANL-CE"], reduction=reduction)
        assert loss.isfinite().all()
        assert grad.isfinite().all()
        assert not grad[1].any()


@pytest.mark.parametrize("label", [-1, 37, 10**6, -(2**31), 2**32 + 3])
def test_label_out_of_range_is_nan_in_its_row_only(label, form, device, monkeypatch):
    monkeypatch.setattr("anl_kernels.rows.labels.recorded_for_others", lambda: True)
    monkeypatch.setattr("anl_kernels.functional.plain_loss", lambda *_: None)
    logits, target = random_rows(3, 37, torch.float32, device)
    target[1] = label
    for reduction in ("sum", "none"):
        logits.requires_grad_()
        loss = ak.robust_loss(logits, target, CASES["ANL-CE"], reduction=reduction)
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isnan().tolist() == (True if reduction == "sum" else [False, True, False])
        assert grad[1].isnan().all()
        assert grad[[0, 2]].isfinite().all()


def test_nan_logits_make_nan(form, device):
    logits, target = random_rows(3, 37, torch.float32, device)
    logits[1, 20] = torch.nan
    loss, grad = loss_and_grad(logits, target, CASES["ANL-CE"], reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    assert grad[[0, 2]].isfinite().all()
    assert grad[1].isnan().any()


@over(("GCE", "NCE", "ANL-FL"))
def test_recomputed_gradient_equals_the_one_pass_gradient(terms, form, device, poisoned):
    logits, target = random_rows(3, 37, torch.float32, device)
    _, one_pass = loss_and_grad(logits, target, terms, reduction="sum")
    _, recomputed = loss_and_grad(logits, target, terms, reduction="none")
    assert error(recomputed, one_pass) <= 1e-6
    leaf = logits.clone().requires_grad_()
    loss = ak.robust_loss(leaf, target, terms, reduction="sum")
    (first,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    assert torch.equal(first, one_pass)
    assert error(second, one_pass) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_same_bits_twice(dtype, form, device):
    logits, target = random_rows(2, 37, dtype, device)
    for reduction in ("mean", "none"):
        first = loss_and_grad(logits, target, CASES["ANL-CE"], reduction=reduction)
        second = loss_and_grad(logits, target, CASES["ANL-CE"], reduction=reduction)
        assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inplace", [False, True])
def test_inplace(inplace, dtype, form, device):
    logits, target = random_rows(3, 37, dtype, device)
    _, wanted = loss_and_grad(logits, target, CASES["ANL-CE"])
    leaf = logits.clone().requires_grad_()
    computed = leaf * 1
    ak.robust_loss(computed, target, CASES["ANL-CE"], inplace=inplace).backward()
    assert torch.equal(leaf.grad, wanted)


def test_softmax(form, device, poisoned):
    logits = torch.randn(3, 37, device=device, requires_grad=True)
    up = torch.randn(3, 37, device=device)
    probs = ak.softmax(logits)
    (grad,) = torch.autograd.grad(probs, logits, up)
    (by_torch,) = torch.autograd.grad(logits.softmax(-1), logits, up)
    torch.testing.assert_close(probs, logits.softmax(-1))
    torch.testing.assert_close(grad, by_torch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entropy_regulariser(dtype, form, device, poisoned):
    logits = (2 * torch.randn(5, 37, device=device)).to(dtype).requires_grad_()
    counted = torch.tensor([True, True, False, True, True], device=device)

    def ours():
        value = ak.entropy_regulariser(logits, counted=counted)
        return value, *torch.autograd.grad(value, logits)

    q = logits.double().softmax(1).clamp(1e-7, 1 - 1e-7)[counted].mean(0)
    wanted = (q / q.sum() * (q / q.sum()).log()).sum() + torch.tensor(37.0).double().log()
    (by_torch,) = torch.autograd.grad(wanted, logits)
    first, second = ours(), ours()
    assert all(map(torch.equal, first, second))
    torch.testing.assert_close(first[0].double(), wanted, rtol=1e-6, atol=1e-6)
    assert error(first[1], by_torch) <= max(1e-6, torch.finfo(dtype).eps)
