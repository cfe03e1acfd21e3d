"""Gradients over all labels of a row sum to 0: what tolerance of noise rests on."""

import pytest
import torch

import anl_kernels as ak
from anl_kernels.terms import as_terms
from tests.balance.definitions import MODES, NORMALISED, balance_of
from tests.cases import TERMS
from tests.helpers import loss_and_grad

# Of a focal weight that is held constant, plainly too, only all labels together are symmetric.
CASES = {name: as_terms(TERMS[name]) for name in NORMALISED}
CASES["ANL"] = 5.0 * ak.NCE() + 2.0 * ak.NNCE()


def gradients_by_label(logits, terms, mode):
    """Of one row, as the first of a batch in which all else stays: (K labels, K)."""
    num_classes = logits.shape[1]
    made = []
    for label in range(num_classes):
        target = torch.arange(len(logits), device=logits.device) % num_classes
        target[0] = label
        balance = balance_of(mode, terms, num_classes, logits.device, training=False)
        options = {"class_scale": balance, "reduction": "none"}
        made.append(loss_and_grad(logits, target, terms, **options)[1][0])
    return torch.stack(made)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("terms", CASES.values(), ids=CASES)
def test_over_labels_and_over_classes(terms, mode, backend, device):
    logits = 3 * torch.randn(2, 4, dtype=torch.float64, device=device)
    grads = gradients_by_label(logits, terms, mode)
    assert grads.abs().amax() > 1e-3
    bound = 1e-13 * grads.abs().sum(0).amax()
    assert grads.sum(0).abs().amax() <= bound
    assert grads.sum(1).abs().amax() <= bound


@pytest.mark.parametrize("num_classes", [10, 3000])
def test_the_size_does_not_shrink_with_the_classes(num_classes, kernels, device):
    """At uniform logits NCE balanced by row is cross entropy less its mean over labels."""
    logits = torch.zeros(2, num_classes, device=device)
    target = torch.tensor([0, num_classes - 1], device=device)
    options = {"class_scale": "row", "reduction": "none"}
    _, grad = loss_and_grad(logits, target, ak.NCE(), **options)
    # (p - e_y) - (l_y / mean l)(p - 1/K), of which the second part is 0.
    wanted = torch.full_like(logits, 1 / num_classes)
    wanted[range(2), target] -= 1
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)
    for mode in ("batch", "running"):
        balance = balance_of(mode, as_terms(ak.NCE()), num_classes, device)
        if mode == "running":
            balance.running.zero_()
        options = {"class_scale": balance, "reduction": "none"}
        _, same = loss_and_grad(logits, target, ak.NCE(), **options)
        torch.testing.assert_close(same, grad, rtol=1e-4, atol=1e-6)
