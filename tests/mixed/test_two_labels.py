"""Two labels a row: ``lam L(target) + (1 - lam) L(target_b)``."""

import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak
from tests.cases import CASES, KINDS, over
from tests.helpers import error
from tests.mixed.definitions import by_two_labels, gradient

REDUCTIONS = ("mean", "sum", "none")


def problem(shape, device, dtype=torch.float64, num_classes=6):
    """Equal labels, ignored ones in either or both, and some of each other kind."""
    logits = (2 * torch.randn(shape, dtype=torch.float64, device=device)).to(dtype)
    rows = shape[:1] + shape[2:]
    first, second = (torch.randint(num_classes, rows, device=device) for _ in "ab")
    second[0] = first[0]
    first[1] = -100
    second[2] = -100
    first[3] = second[3] = -100
    return logits, first, second


@over()
def test_every_term(terms, swept, backend, device):
    logits, first, second = problem((6, 6, 2), device)
    options = {"target_b": second, "lam": torch.rand(6, device=device, dtype=torch.float64)}
    ours = gradient(lambda z: ak.robust_loss(z, first, terms, **options), logits)
    wanted = gradient(lambda z: by_two_labels(z, first, terms=terms, **options), logits)
    torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["float", "numpy", "0-d", "rows", "target"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_kinds_of_lam(reduction, kind, form, backend, device):
    logits, first, second = problem((5, 6, 3), device)
    lam = {
        "float": 0.3,
        "numpy": torch.tensor(0.3).numpy()[()],
        "0-d": torch.tensor(0.3, dtype=torch.float64, device=device),
        "rows": torch.rand(5, dtype=torch.float64, device=device),
        "target": torch.rand(5, 3, dtype=torch.float64, device=device),
    }[kind]
    loss = ak.robust_loss(
        logits, first, CASES["ANL-CE"], target_b=second, lam=lam, reduction=reduction
    )
    wanted = by_two_labels(logits, first, second, lam, CASES["ANL-CE"], reduction)
    torch.testing.assert_close(loss, wanted)


def test_it_is_the_usual_mixup(form, backend, device):
    logits, first, second = problem((8, 6), device)
    first, second = first.clamp(min=0), second.clamp(min=0)
    ours = gradient(lambda z: ak.robust_loss(z, first, ak.CE(), target_b=second, lam=0.7), logits)
    theirs = gradient(
        lambda z: 0.7 * F.cross_entropy(z, first) + 0.3 * F.cross_entropy(z, second), logits
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@over(KINDS)
def test_no_further_from_the_truth_than_two_calls(terms, reduction, dtype, swept, kernels, device):
    logits, first, second = problem((6, 40), device, dtype, 40)
    options = {"target_b": second, "lam": 0.6}
    truth = gradient(
        lambda z: by_two_labels(z, first, terms=terms, reduction=reduction, **options),
        logits.double(),
    )
    ours = gradient(
        lambda z: ak.robust_loss(z, first, terms, reduction=reduction, **options), logits
    )
    assert error(ours[0], truth[0]) <= 1e-5
    assert error(ours[1], truth[1]) <= max(1e-5, torch.finfo(dtype).eps)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_class_weights(reduction, smoothing, form, backend, device):
    logits, first, second = problem((6, 6), device)
    weight = torch.rand(6, dtype=torch.float64, device=device) + 0.1
    options = {"weight": weight, "reduction": reduction}
    ours = ak.robust_loss(logits, first, ak.CE(smoothing), target_b=second, lam=0.7, **options)
    parts = [
        F.cross_entropy(logits, y, weight=weight, label_smoothing=smoothing, reduction="none")
        for y in (first, second)
    ]
    wanted = 0.7 * parts[0] + 0.3 * parts[1]
    counted = [weight[y.clamp(min=0)] * (y != -100) for y in (first, second)]
    if reduction != "none":
        divisor = (0.7 * counted[0] + 0.3 * counted[1]).sum() if reduction == "mean" else 1
        wanted = wanted.sum() / divisor
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@over(("ANL-CE", "CE-smoothed"))
def test_rows_that_do_not_count_may_hold_anything(terms, poison, form, kernels, device):
    logits, first, second = problem((6, 6), device, torch.float32)
    poisoned = logits.clone()
    poisoned[3] = poison
    weight = torch.rand(6, device=device)
    options = {"target_b": second, "lam": 0.6, "weight": weight}
    ours = gradient(lambda z: ak.robust_loss(z, first, terms, **options), poisoned)
    wanted = gradient(lambda z: ak.robust_loss(z, first, terms, **options), logits)
    torch.testing.assert_close(ours, wanted)
    assert not ours[1][3].any()


def test_all_ignored(form, backend, device):
    logits = torch.randn(3, 5, device=device)
    ignored = torch.full((3,), -100, device=device)
    loss, grad = gradient(
        lambda z: ak.robust_loss(z, ignored, ak.NCE(), target_b=ignored, lam=0.5), logits
    )
    assert loss == 0
    assert not grad.any()


def test_lam_and_sample_weight_get_gradients(form, backend, device):
    logits, first, second = problem((6, 6), device)
    lam = torch.rand(6, dtype=torch.float64, device=device, requires_grad=True)
    factor = torch.rand(6, dtype=torch.float64, device=device, requires_grad=True)
    loss = ak.robust_loss(
        logits, first, ak.NCE(), target_b=second, lam=lam, sample_weight=factor, reduction="sum"
    )
    wanted = (by_two_labels(logits, first, second, lam, ak.NCE(), "none") * factor).sum()
    ours, theirs = (torch.autograd.grad(value, (lam, factor)) for value in (loss, wanted))
    torch.testing.assert_close(ours, theirs)


def test_int32_labels_and_one_of_int64(form, backend, device):
    logits, first, second = problem((6, 6), device)
    options = {"target_b": second, "lam": 0.6}
    wanted = gradient(lambda z: ak.robust_loss(z, first, ak.NCE(), **options), logits)
    ours = gradient(lambda z: ak.robust_loss(z, first.int(), ak.NCE(), **options), logits)
    torch.testing.assert_close(ours, wanted)


def test_aux(form, backend, device):
    logits, first, second = problem((6, 6), device)
    terms = CASES["ANL-CE"]
    loss, aux = ak.robust_loss(
        logits, first, terms, target_b=second, lam=0.6, reduction="none", return_aux=True
    )
    weighted = sum(w * one for (w, _), one in zip(terms, aux.term_losses, strict=True))
    torch.testing.assert_close(loss, weighted)
    p = logits.softmax(1)
    shares = [
        share * p.gather(1, y.clamp(min=0).unsqueeze(1)).squeeze(1) * (y != -100)
        for share, y in ((0.6, first), (0.4, second))
    ]
    torch.testing.assert_close(aux.p_y, sum(shares))
    torch.testing.assert_close(aux.lse, logits.logsumexp(1))


def test_modules(backend, device):
    logits, first, second = problem((6, 6), device)
    criterion = ak.ActiveNegativeLoss(weight=torch.rand(6, dtype=torch.float64)).to(device)
    ours = criterion(logits, first, target_b=second, lam=0.6)
    wanted = by_two_labels(logits, first, second, 0.6, criterion.terms, weight=criterion.weight)
    torch.testing.assert_close(ours, wanted)
    assert ak.nce(logits, first, target_b=second, lam=0.6) == ak.robust_loss(
        logits, first, ak.NCE(), target_b=second, lam=0.6
    )


@over(KINDS)
def test_gradgradcheck(terms, form, device):
    logits, first, second = problem((5, 4), device, num_classes=4)
    logits.requires_grad_()

    def loss(z):
        return ak.robust_loss(z, first, terms, target_b=second, lam=0.6)

    assert torch.autograd.gradcheck(loss, logits, fast_mode=True)
    assert torch.autograd.gradgradcheck(loss, logits, fast_mode=True)
