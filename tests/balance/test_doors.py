"""Users' own terms, several labels, recipes, regularisers and doors of frameworks."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import anl_kernels as ak
from anl_kernels import recipes
from anl_kernels.integrations.items import LogitsLoss
from anl_kernels.terms.base import Term
from anl_kernels.terms.row import fraction
from tests.balance.definitions import (
    IGNORE,
    MIXED,
    MODES,
    SOME,
    balance_of,
    balanced_by_formula,
    problem,
)
from tests.helpers import error, leaf, loss_and_grad

modes = pytest.mark.parametrize("mode", MODES)
ANL = SOME["ANL-CE"]


@dataclass(frozen=True)
class Shared(Term, registered=False):
    """As NCE, of a user."""

    normalised: ClassVar[bool] = True

    def summands(self, row):
        return row.l_y, row.total_others(row.log_probs)

    def rows(self, row):
        return fraction(*self.summands(row))


@dataclass(frozen=True)
class Silent(Term, registered=False):
    """Without summands."""

    normalised: ClassVar[bool] = True

    def rows(self, row):
        return row.l_y / (row.l_y + row.total_others(row.log_probs))


@dataclass(frozen=True)
class Listed(Shared, registered=False):
    """One that cannot be hashed."""

    marks: list = None


@modes
@pytest.mark.parametrize("head", [False, True])
def test_terms_of_users(mode, head, device):
    logits, target = problem((5, 6), device=device)
    known = 0.5 * ak.NCE() + 2.0 * ak.MAE()
    grads = []
    for terms in (known, 0.5 * Shared() + 2.0 * ak.MAE(), 0.5 * Listed([1]) + 2.0 * ak.MAE()):
        balance = balance_of(mode, known, 6, device)
        if mode == "running":
            balance.running.zero_()
        given = leaf(logits)
        if head:
            eye = torch.eye(6, dtype=logits.dtype, device=device)
            loss = ak.linear_robust_loss(given, eye, target, terms, class_scale=balance)
        else:
            loss = ak.robust_loss(given, target, terms, class_scale=balance)
        loss.backward()
        grads.append((given.grad, balance.running))
    for ours, state in grads[1:]:
        torch.testing.assert_close(ours, grads[0][0])
        if state is not None:
            torch.testing.assert_close(state, grads[0][1])


@modes
def test_a_term_without_summands(mode, device):
    """It runs plainly, and says what is missing otherwise."""
    logits, target = problem((5, 6), device=device)
    loss_and_grad(logits, target, Silent())
    balance = balance_of(mode, 1.0 * ak.NCE(), 6, device)
    with pytest.raises(NotImplementedError, match=r"Silent must define summands\(row\)"):
        loss_and_grad(logits, target, Silent(), class_scale=balance)
    with pytest.raises(NotImplementedError, match=r"Silent must define summands\(row\)"):
        ak.robust_loss(logits, target, Silent(), return_aux="denominators")


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("terms", [SOME["ANL-CE"], MIXED], ids=["ANL-CE", "mixed"])
def test_several_labels_by_row(terms, size, device):
    """The denominator of a row is the same for each of its labels."""
    shape = (4, 9) if size == "small" else (1030, 1024)  # as kernels sweep both labels at once
    dtype = torch.float64 if size == "small" else torch.float32
    logits, target = problem(shape, dtype, device)
    other = torch.randint(shape[1], target.shape, device=device)
    parts = [balanced_by_formula(logits, labels, terms, "row") for labels in (target, other)]
    options = {"target_b": other, "lam": 0.3, "class_scale": "row", "reduction": "sum"}
    slack = 1e-12 if size == "small" else 1e-5
    loss, grad = loss_and_grad(logits, target, terms, **options)
    assert error(loss, 0.3 * parts[0][0].sum() + 0.7 * parts[1][0].sum()) <= slack
    assert error(grad, 0.3 * parts[0][1] + 0.7 * parts[1][1]) <= slack


def test_class_probabilities_by_row(device):
    logits, _ = problem((4, 9), device=device, ignored=False)
    shares = torch.randn_like(logits).softmax(1)
    terms, wanted, value = MIXED + ak.CE(0.1), 0, 0
    for label in range(9):
        target = torch.full((4,), label, device=device)
        losses, grad = balanced_by_formula(logits, target, terms, "row", shares[:, label])
        wanted, value = wanted + grad, value + losses.sum()
    options = {"class_scale": "row", "reduction": "sum"}
    loss, grad = loss_and_grad(logits, shares, terms, **options)
    assert error(loss, value) <= 1e-12
    assert error(grad, wanted) <= 1e-12


@modes
def test_entropy_regularised(mode, backend, device):
    logits, target = problem((5, 6), torch.float32, device)
    criterion = ak.RobustLoss(ANL, class_scale=mode).to(device).eval()
    whole = ak.EntropyRegularisedLoss(criterion, 0.3)
    given, apart = leaf(logits), leaf(logits)
    whole(given, target).backward()
    entropy = ak.entropy_regulariser(apart, counted=target != IGNORE)
    (criterion(apart, target) + 0.3 * entropy).backward()
    assert error(given.grad, apart.grad) <= 1e-6
    assert list(whole.state_dict()) == ["criterion.running_summands"] * (mode == "running")


@modes
def test_truncated_gce(mode, device):
    """It has no normalised term: nothing changes, and nothing breaks."""
    logits, target = problem((5, 6), torch.float32, device)
    index, grads = torch.arange(5, device=device), []
    for scale in (1.0, mode):
        given = leaf(logits)
        recipes.TruncatedGCE(5, class_scale=scale).to(device)(given, target, index).backward()
        grads.append(given.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("num_items", [None, 17, torch.tensor(17)])
@modes
def test_accumulated_items(mode, num_items, device):
    """As transformers divides; one running mean, which is the caller's, for both reductions."""
    logits, target = problem((5, 6), device=device)
    balance = balance_of(mode, ANL, 6, device)
    before = None if balance.running is None else balance.running.clone()
    loss = LogitsLoss(ANL, {"class_scale": balance})
    given = leaf(logits)
    loss(given, target, num_items, shift=False).backward()
    scale = 1 / int((target != IGNORE).sum()) if num_items is None else 1 / 17
    _, wanted = balanced_by_formula(logits, target, ANL, mode, scale, before)
    assert error(given.grad, wanted) <= 1e-12
    assert before is None or not torch.equal(balance.running, before)


@modes
def test_a_grad_scaler(mode, device):
    """The gradient of float16 logits outgrows no float16, and comes back unscaled."""
    logits, target = problem((5, 6), torch.float16, device)
    balance = balance_of(mode, ANL, 6, device, training=False)
    weight = torch.ones(6, device=device, requires_grad=True)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    optimiser = torch.optim.SGD([weight], 0.0)
    loss = ak.robust_loss(logits * weight.half(), target, ANL, class_scale=balance)
    scaler.scale(loss).backward()
    scaler.unscale_(optimiser)
    _, grad = loss_and_grad(logits.double(), target, ANL, class_scale=balance)
    assert error(weight.grad, (grad * logits.double()).sum(0)) <= 3e-3


@modes
def test_many_classes_in_float16(mode, kernels, device):
    """Denominators reach 1e6; gradients stay of size 1."""
    logits, target = problem((2, 50000), torch.float16, device)
    balance = balance_of(mode, ANL, 50000, device, training=False)
    _, grad = loss_and_grad(logits, target, ANL, class_scale=balance, reduction="sum")
    _, wanted = balanced_by_formula(logits, target, ANL, mode, 1.0, balance.running)
    assert error(grad, wanted) <= 2e-3
