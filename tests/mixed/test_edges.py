"""Where soft targets and two labels meet what is not there, or does not count."""

import math

import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak
from anl_kernels.terms.base import REGISTRY, Term

ROWS, CLASSES = 1024, 1024  # many enough for the sweeps on a CPU
ANL = 5.0 * ak.NCE() + 5.0 * ak.NNCE(1e-8)


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return 3 * torch.randn(ROWS, CLASSES)


def labels():
    return torch.randint(CLASSES, (ROWS,))


FORMS = {
    "two": lambda z, **o: ak.robust_loss(z, labels_a, ANL, target_b=labels_b, lam=0.3, **o),
    "soft": lambda z, **o: ak.robust_loss(z, shares, ak.CE() + ak.MAE(), **o),
    "smoothed": lambda z, **o: ak.robust_loss(z, labels_a, ak.CE(0.1), weight=factors, **o),
}
torch.manual_seed(1)
labels_a, labels_b = labels(), labels()
shares, factors = torch.rand(ROWS, CLASSES).softmax(1), torch.rand(CLASSES)


@pytest.mark.parametrize("form", FORMS)
def test_auxiliary_outputs_are_of_the_logits_that_the_gradient_replaces(form, logits):
    names = ["term_losses", "lse", "p_y", "argmax", "probs"]
    wanted = FORMS[form](logits, return_aux=names)[1]
    computed = logits.clone().requires_grad_() * 1
    found = FORMS[form](computed, return_aux=names, inplace=True)[1]
    for name in names:
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name))


@pytest.mark.parametrize("rows", [4, 64])
@pytest.mark.parametrize("terms", [ak.CE(), ak.CE(0.1)], ids=str)
def test_the_first_class_may_be_absent(terms, rows, logits):
    z = logits[:rows].clone()
    z[:, 0] = -math.inf
    target = F.pad(torch.rand(rows, CLASSES - 1).softmax(1), (1, 0))
    without = ak.robust_loss(z[:, 1:], target[:, 1:], terms)
    torch.testing.assert_close(ak.robust_loss(z, target, terms), without)


@pytest.mark.parametrize("rows", [4, ROWS])
@pytest.mark.parametrize("make", [float, torch.tensor, lambda lam: torch.full((ROWS,), lam)])
@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_label_without_a_share_may_be_absent(lam, make, rows, logits):
    share = make(lam)
    share = share[:rows] if isinstance(share, torch.Tensor) and share.dim() else share
    z, there = logits[:rows].clone(), labels_a[:rows].clamp(min=1)
    z[:, 0] = -math.inf
    absent = torch.zeros_like(there)
    pair = (there, absent) if lam else (absent, there)
    made = ak.robust_loss(z, pair[0], ak.CE(), target_b=pair[1], lam=share)
    torch.testing.assert_close(made, F.cross_entropy(z, there))


def test_a_share_is_learned_at_its_ends():
    z, a, b = torch.randn(5, 7), torch.arange(5), torch.arange(5) + 2
    share = torch.tensor(1.0, requires_grad=True)
    ak.robust_loss(z, a, ak.CE(), target_b=b, lam=share).backward()
    torch.testing.assert_close(share.grad, F.cross_entropy(z, a) - F.cross_entropy(z, b))


@pytest.mark.parametrize("weight", [None, torch.rand(7)], ids=["plain", "weighted"])
def test_a_batch_without_labels_has_no_gradient_of_shares(weight):
    z, nothing = torch.randn(5, 7, requires_grad=True), torch.full((5,), -100)
    share = torch.tensor(0.5, requires_grad=True)
    ak.robust_loss(z, nothing, ak.CE(), target_b=nothing, lam=share, weight=weight).backward()
    assert share.grad == 0
    assert not z.grad.any()


def test_a_batch_without_labels_has_no_gradient_of_class_weights():
    weight = torch.rand(7, requires_grad=True)
    ak.robust_loss(torch.randn(5, 7), torch.full((5,), -100), ak.CE(), weight=weight).backward()
    assert not weight.grad.any()


def test_shares_beyond_their_range():
    z, y = torch.randn(5, 7), torch.arange(5)
    for share in (1.5, torch.tensor(-0.1), torch.tensor([0.0, 1.0, 0.5, 2.0, 0.1])):
        with pytest.raises(ValueError, match=r"lam must be in \[0, 1\]"):
            ak.robust_loss(z, y, ak.CE(), target_b=y, lam=share)


@pytest.mark.parametrize("rows", [5, 7])
def test_a_term_that_sums_over_classes_itself(rows):
    class SumOfSquares(Term):
        def rows(self, row):
            return row.probs.square().sum(-1)

    try:
        with pytest.raises(ValueError, match=r"SumOfSquares\.rows must return a loss for each"):
            ak.robust_loss(torch.randn(rows, 7), torch.rand(rows, 7), SumOfSquares())
    finally:
        REGISTRY.pop("SumOfSquares", None)
