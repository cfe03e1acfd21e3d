"""The rows that most logits are have the numbers of those that may be anything."""

import pytest
import torch

import anl_kernels as ak
from anl_kernels.terms.dense_row import MANY, DenseRow, row_of
from anl_kernels.terms.row import Row
from tests.cases import CASES, over
from tests.helpers import error, random_rows


def losses_and_grads(make, terms, logits, target, up):
    """Losses, their gradient and a second gradient, by one kind of rows."""
    z = logits.clone().requires_grad_()
    row = make(z, target)
    losses = sum(weight * term.rows(row) for weight, term in terms)
    (grad,) = torch.autograd.grad(losses.sum(), z, create_graph=True)
    second = torch.autograd.grad((grad * up).sum(), z)[0]
    return losses.detach(), grad.detach(), second


@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
@pytest.mark.parametrize("num_classes", [2, 7, MANY + 1])
@over()
def test_same_numbers(terms, num_classes, scale):
    logits, target = random_rows(9, num_classes, torch.float64, scale=scale)
    target[:3] = logits[:3].argmax(1)
    up = torch.randn_like(logits)
    assert type(row_of(logits, target)) is DenseRow
    ours = losses_and_grads(DenseRow, terms, logits, target, up)
    for actual, wanted in zip(ours, losses_and_grads(Row, terms, logits, target, up), strict=True):
        assert error(actual, wanted) <= 1e-10


def test_what_needs_masks_gets_them():
    logits, target = random_rows(4, 7)
    for value in (-torch.inf, torch.inf, torch.nan):
        wild = logits.clone()
        wild[2, 3] = value
        assert type(row_of(wild, target)) is Row
    sure = logits.clone()
    sure[1] = 0.0
    sure[1, target[1]] = 100.0  # the mass of the others is below what float32 can square
    assert type(row_of(sure, target)) is Row
    assert type(row_of(logits[:, :1], 0 * target)) is Row
    assert type(row_of(logits[:0], target[:0])) is Row
    assert type(row_of(logits, target)) is DenseRow


def test_transforms_ask_no_value():
    logits, target = random_rows(4, 7, torch.float64)
    with ak.use_backend("reference"):

        def loss(z):
            return ak.robust_loss(z, target, CASES["ANL-CE"])

        z = logits.clone().requires_grad_()
        wanted = torch.autograd.grad(loss(z), z)[0]
        torch.testing.assert_close(torch.func.grad(loss)(logits), wanted)
        torch.testing.assert_close(torch.func.jacfwd(loss)(logits), wanted)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_an_offset_common_to_the_row_costs_no_digits(offset):
    logits, target = random_rows(9, 50, torch.float32, scale=3.0)
    shifted = (logits + offset).double()
    wanted = losses_and_grads(Row, [(1.0, ak.ZLoss())], shifted, target, torch.ones_like(shifted))
    rows = [(1.0, ak.ZLoss())]
    found = losses_and_grads(DenseRow, rows, shifted.float(), target, torch.ones(9, 50))
    assert error(found[0], wanted[0]) <= 1e-6
    assert error(found[1], wanted[1]) <= 1e-6
