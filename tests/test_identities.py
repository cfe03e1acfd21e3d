"""What must hold of a loss whatever computes it."""

import math

import pytest
import torch

import anl_kernels as ak
from tests.cases import is_shift_invariant, over
from tests.helpers import loss_and_grad, random_rows

K = 6

SUMS_OVER_LABELS = [
    (ak.NCE(), 1),
    (ak.NFL(), 1),
    (ak.NFL(gamma=2.0, detach_weight=False), 1),
    (ak.NGCE(), 1),
    (ak.NNCE(), K - 1),
    (ak.NNCE(min_prob=1e-3, prob_max=1 - 1e-3), K - 1),
    (ak.NNFL(), K - 1),
    (ak.NNFL(gamma=2.0, min_prob=1e-3), K - 1),
    (ak.MAE(), K - 1),
    (ak.RCE(), -math.log(1e-4) * (K - 1)),
]


def close(actual, wanted, tolerance=1e-12):
    torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("term", "total"), SUMS_OVER_LABELS, ids=str)
def test_sum_over_labels(term, total, backend, device):
    logits, _ = random_rows(1, K, torch.float64, device)
    losses = ak.robust_loss(
        logits.expand(K, K), torch.arange(K, device=device), term, reduction="none"
    )
    close(losses.sum(), torch.full_like(losses.sum(), total))


@over(where=is_shift_invariant)
def test_gradient_rows_sum_to_zero(terms, backend, device):
    logits, target = random_rows(4, 9, torch.float64, device)
    _, grad = loss_and_grad(logits, target, terms, reduction="sum")
    assert (grad.sum(1).abs() <= 1e-13 * grad.abs().sum(1)).all()


@over(where=is_shift_invariant)
def test_shift_invariance(terms, backend, device):
    logits, target = random_rows(3, 7, torch.float64, device)
    logits = logits.float().double()  # so that the shift loses no digits
    for ours, shifted in zip(
        loss_and_grad(logits, target, terms),
        loss_and_grad(logits + 1024, target, terms),
        strict=True,
    ):
        close(ours, shifted, 1e-11)


@over()
def test_permutation_equivariance(terms, backend, device):
    logits, target = random_rows(3, 7, torch.float64, device)
    order = torch.randperm(7, device=device)
    loss, grad = loss_and_grad(logits, target, terms)
    inverse = order.argsort()
    permuted_loss, permuted_grad = loss_and_grad(logits[:, order], inverse[target], terms)
    close(permuted_loss, loss)
    close(permuted_grad, grad[:, order])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@over()
def test_minus_infinity_removes_a_class(terms, dtype, backend, device):
    logits, _ = random_rows(3, 7, dtype, device)
    target = torch.tensor([0, 2, 6], device=device)
    present = torch.tensor([0, 1, 2, 4, 6], device=device)
    masked = torch.full_like(logits, -torch.inf)
    masked[:, present] = logits[:, present]
    places = torch.tensor([0, 2, 4], device=device)
    loss, grad = loss_and_grad(logits[:, present].contiguous(), places, terms)
    masked_loss, masked_grad = loss_and_grad(masked, target, terms)
    tolerance = 1e-12 if dtype == torch.float64 else 2 * torch.finfo(dtype).eps
    close(masked_loss, loss, min(tolerance, 1e-5))
    close(masked_grad[:, present], grad, tolerance)
    assert not masked_grad[:, [3, 5]].any()


@over()
def test_one_class(terms, backend, device):
    logits, target = random_rows(3, 1, torch.float64, device)
    loss, grad = loss_and_grad(logits, target, terms)
    assert loss.isfinite()
    if is_shift_invariant(terms):
        assert not grad.any()


def test_one_class_values(backend, device):
    logits, target = random_rows(3, 1, torch.float64, device)
    for term, value in [(ak.CE(), 0), (ak.NCE(), 1), (ak.NNCE(), 0), (ak.MAE(), 0), (ak.GCE(), 0)]:
        assert ak.robust_loss(logits, target, term).item() == value


@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_uniform_logits(num_classes, backend, device):
    logits = torch.full((2, num_classes), 3.25, device=device, dtype=torch.float64)
    target = torch.tensor([0, num_classes - 1], device=device)
    values = {
        ak.CE(): math.log(num_classes),
        ak.NCE(): 1 / num_classes,
        ak.NFL(): 1 / num_classes,
        ak.NNCE(): 1 - 1 / num_classes,
        ak.NNFL(): 1 - 1 / num_classes,
        ak.MAE(): 1 - 1 / num_classes,
        ak.NGCE(): 1 / num_classes,
    }
    for term, value in values.items():
        assert ak.robust_loss(logits, target, term).item() == pytest.approx(value, rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("term", [ak.NNCE(), ak.NNFL(), ak.NNFL(detach_weight=False)], ids=str)
def test_target_below_min_prob_is_one_with_no_gradient(term, dtype, backend, device):
    logits = torch.tensor([[0.0, 20, 1], [3, -40, 5]], device=device, dtype=dtype)
    target = torch.tensor([0, 1], device=device)
    loss, grad = loss_and_grad(logits, target, term, reduction="none")
    assert loss.tolist() == [1, 1]
    assert not grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("large", [1e4, -1e4])
@over()
def test_large_logits(terms, large, dtype, backend, device):
    logits = torch.randn(4, 5, device=device).to(dtype)
    logits[:2, 1] = large
    logits[3] = large
    target = torch.tensor([1, 0, 2, 3], device=device)
    loss, grad = loss_and_grad(logits, target, terms, reduction="none")
    assert loss.isfinite().all()
    if dtype != torch.float16 or is_shift_invariant(terms):  # 2 lse p = 2e4 overflows nothing
        assert grad.isfinite().all()


# Fails for AMSE on the reference, which does not count a target at -inf among the classes.
@over()
def test_label_of_a_missing_class_is_never_finite_and_wrong(terms, backend, device):
    target = torch.tensor([1], device=device)
    missing, unlikely = torch.tensor(
        [[[1.0, -torch.inf, 2.0]], [[1.0, -1e5, 2.0]]], device=device, dtype=torch.float64
    )
    loss = ak.robust_loss(missing, target, terms)
    limit = ak.robust_loss(unlikely, target, terms)
    assert not loss.isfinite() or loss.item() == pytest.approx(limit.item(), rel=1e-3)


# Fails for NNFL on Triton: ``NaN >= -clamp`` is false, so every summand is 0 and so is the loss.
@pytest.mark.parametrize("column", [1, 2], ids=["target", "other"])
@over()
def test_a_nan_is_not_hidden(terms, column, backend, device):
    """A model that diverged must show in its loss, whatever clamps come after."""
    logits, _ = random_rows(3, 5, torch.float32, device)
    logits[1, column] = torch.nan
    target = torch.tensor([0, 1, 2], device=device)
    loss, grad = loss_and_grad(logits, target, terms, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    assert grad[1].isnan().any()
    assert grad[[0, 2]].isfinite().all()


def scaled_cross_entropy(logits, target, weight):
    """Row losses and their gradient of cross entropy times a constant of each row."""
    losses, grad = loss_and_grad(logits, target, ak.CE(), reduction="none")
    return weight * losses, weight.unsqueeze(1) * grad


@pytest.mark.parametrize("num_classes", [2, 10, 1000])
@pytest.mark.parametrize("term", [ak.RelativeGCE(), ak.RelativeGCE(3.0), "EAFT"], ids=str)
def test_gated_cross_entropy_starts_as_cross_entropy(term, num_classes, backend, device):
    term = ak.EAFT(unit=math.log(num_classes)) if term == "EAFT" else term
    logits = torch.full((2, num_classes), 3.25, device=device, dtype=torch.float64)
    target = torch.tensor([0, num_classes - 1], device=device)
    ours = loss_and_grad(logits, target, term, reduction="none")
    wanted = loss_and_grad(logits, target, ak.CE(), reduction="none")
    for actual, expected in zip(ours, wanted, strict=True):
        close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_relative_gce_is_cross_entropy_where_the_label_is_an_argmax(dtype, backend, device):
    logits, _ = random_rows(4, 9, dtype, device)
    target = logits.argmax(1)
    logits[1, (target[1] + 1) % 9] = logits[1, target[1]]  # ties are argmaxes
    ours = loss_and_grad(logits, target, ak.RelativeGCE(), reduction="none")
    wanted = loss_and_grad(logits, target, ak.CE(), reduction="none")
    assert all(torch.equal(actual, expected) for actual, expected in zip(ours, wanted, strict=True))


def test_relative_gce_fades_as_another_class_is_preferred(backend, device):
    logits, target = random_rows(5, 9, torch.float64, device)
    l = logits.log_softmax(1)
    weight = torch.exp(0.5 * (l.gather(1, target[:, None]).squeeze(1) - l.amax(1)))
    ours = loss_and_grad(logits, target, ak.RelativeGCE(0.5), reduction="none")
    for actual, expected in zip(ours, scaled_cross_entropy(logits, target, weight), strict=True):
        close(actual, expected)


@pytest.mark.parametrize("m", [0.0, 0.3, 1e5])
@pytest.mark.parametrize("term", [ak.EpsilonCE, ak.EpsilonFL])
def test_epsilon_softmax_takes_every_tie_for_an_argmax(term, m, backend, device):
    logits = torch.tensor([[2.0, 1, 2]], device=device, dtype=torch.float64).expand(3, 3)
    p = (logits.softmax(1)[0] + m * (logits[0] - 1)) / (1 + m)
    wanted = -p.log() * ((1 - p) ** 0.1 if term is ak.EpsilonFL else 1)
    target = torch.tensor([0, 1, 2], device=device)
    close(ak.robust_loss(logits, target, term(m), reduction="none"), wanted, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_epsilon_softmax_of_nothing_is_softmax(dtype, backend, device):
    logits, target = random_rows(6, 300, dtype, device)
    target[:3] = logits[:3].argmax(1)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for ours, wanted in ((ak.EpsilonCE(0.0), ak.CE()), (ak.EpsilonFL(0.0, 2.0), ak.FL(2.0))):
        pairs = zip(
            loss_and_grad(logits, target, ours, reduction="none"),
            loss_and_grad(logits, target, wanted, reduction="none"),
            strict=True,
        )
        for actual, expected in pairs:
            close(actual, expected, max(tolerance, torch.finfo(expected.dtype).eps))


@pytest.mark.parametrize("term", [ak.EpsilonCE(1e3, 1e-6), ak.EpsilonFL(1e3, 0.5, 1e-6)], ids=str)
def test_the_clamp_of_epsilon_softmax_ends_gradients(term, backend, device):
    logits = torch.tensor([[0.0, 8, 1], [8, 0, 1]], device=device)
    loss, grad = loss_and_grad(logits, torch.tensor([0, 0], device=device), term, reduction="none")
    assert loss[0].item() == pytest.approx(-math.log(1e-6), rel=1e-5)
    assert not grad[0].any()
    assert grad[1].any()


def test_deft_is_gce_with_the_concentration_for_its_power(backend, device):
    logits, target = random_rows(5, 9, torch.float64, device)
    ours = loss_and_grad(logits, target, ak.DEFT(), reduction="none")
    for row in range(5):
        q = logits[row].softmax(0).square().sum().item()
        wanted = loss_and_grad(logits[row : row + 1], target[row : row + 1], ak.GCE(q))
        close(ours[0][row], wanted[0])
        close(ours[1][row], wanted[1][0])


def test_thresholds_count_themselves(backend, device):
    logits = torch.zeros(1, 2, dtype=torch.float64, device=device)
    target = torch.zeros(1, dtype=torch.int64, device=device)
    for term, value in [
        (ak.OnlyTopP(0.5), 0.5),
        (ak.OnlyBottomP(0.5), 0.5),
        (ak.OnlyTopLogP(0.5), math.log(2)),
        (ak.OnlyBottomLogP(0.5), math.log(2)),
        (ak.OnlyTopP(0.51), 0),
        (ak.OnlyBottomLogP(0.49), 0),
    ]:
        assert ak.robust_loss(logits, target, term).item() == pytest.approx(value)
