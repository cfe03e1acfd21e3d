"""Rows that do not count: their loss and gradients are 0, whatever they hold."""

import pytest
import torch

from tests.cases import CASES, KINDS, over
from tests.linear.heads import (
    assert_like,
    chunks_of,
    fused,
    fused_loss,
    random_head,
    unfused,
)

SKIP = [None, False, True]
REDUCTIONS = ("mean", "sum", "none")
TERMS = CASES["ANL-CE"]

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("skip", SKIP)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@over(KINDS)
def test_like_unfused(terms, reduction, skip, quick, device):
    head = random_head(device=device).with_ignored(0, 1, 6)
    ours = fused(head, terms, reduction=reduction, skip_ignored=skip, **chunks_of(4, head))
    assert_like(ours, unfused(head, terms, reduction=reduction))


@pytest.mark.parametrize("skip", SKIP)
def test_on_triton(skip, triton_backend, device):
    head = random_head(device=device).with_ignored(0, 1, 6)
    assert_like(fused(head, TERMS, skip_ignored=skip), unfused(head, TERMS))


@pytest.mark.parametrize("skip", SKIP)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_rows(reduction, dtype, skip, quick, device):
    head = random_head(dtype=dtype, device=device).with_ignored(*range(11))
    made = fused(head, TERMS, reduction=reduction, skip_ignored=skip)
    assert all(torch.equal(result, torch.zeros_like(result)) for result in made)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("skip", SKIP)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(
    ("dtype", "rows"), [(torch.float64, (4,)), (torch.float32, (4, 5)), (torch.bfloat16, range(11))]
)
def test_their_hidden_state_may_hold_anything(rows, dtype, softcap, skip, poison, quick, device):
    head = random_head(dtype=dtype, device=device).with_ignored(*rows)
    poisoned = head._replace(hidden=head.hidden.clone())
    poisoned.hidden[list(rows)] = poison
    options = {"logit_softcap": softcap, "skip_ignored": skip} | chunks_of(4, head)
    made = fused(poisoned, TERMS, **options)
    assert all(map(torch.equal, made, fused(head, TERMS, **options)))


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_they_may_hold_anything_where_their_lse_is_asked_for(softcap, quick, device):
    head = random_head(dtype=torch.float32, device=device).with_ignored(4).leaves()
    with torch.no_grad():
        head.hidden[4] = torch.nan
    loss, aux = fused_loss(head, TERMS, return_aux="lse", logit_softcap=softcap)
    grads = torch.autograd.grad(loss, head.parameters)
    assert aux.lse.isnan().nonzero().tolist() == [[4]]
    assert all(grad.isfinite().all() for grad in grads)


def test_they_may_hold_anything_in_a_gradient_of_a_gradient(quick, device):
    head = random_head(device=device).with_ignored(4).leaves()
    with torch.no_grad():
        head.hidden[4] = torch.nan
    loss = fused_loss(head, TERMS)
    grads = torch.autograd.grad(loss, head.parameters, create_graph=True)
    second = torch.autograd.grad(sum(grad.square().sum() for grad in grads), head.parameters)
    assert all(grad.isfinite().all() for grad in (*grads, *second))


def test_they_may_hold_anything_under_transforms(quick, device):
    head = random_head(device=device).with_ignored(4)
    head.hidden[4] = torch.nan
    by_weight = torch.func.grad(lambda w: fused_loss(head._replace(weight=w), TERMS))(head.weight)
    assert by_weight.isfinite().all()


@pytest.mark.parametrize("skip", SKIP)
def test_their_weights_may_hold_anything(skip, quick, device):
    head = random_head(device=device).with_ignored(4)
    factors = torch.rand(11, dtype=torch.float64, device=device)
    wanted = fused(head, TERMS, sample_weight=factors, skip_ignored=skip)
    factors = factors.index_fill(0, torch.tensor([4], device=device), torch.nan)
    made = fused(head, TERMS, sample_weight=factors, skip_ignored=skip)
    assert all(map(torch.equal, made, wanted))
