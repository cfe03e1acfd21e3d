"""Terms of users, which operators are not told of: all logits at once, by autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import anl_kernels as ak
from anl_kernels.terms import REGISTRY, Term


@pytest.fixture(autouse=True)
def _registry():
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


@pytest.fixture
def batch():
    """(hidden, weight, target)."""
    hidden = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    return hidden, weight, torch.tensor([0, 3, 8, -100, 5, 1])


def power_of(exponent):
    """A class of the same name each time, as a notebook's cell defines it again."""

    class Power(Term):
        def rows(self, row):
            return row.rest**exponent

    return Power()


def grads(loss, hidden, weight):
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_equals_the_loss_of_the_logits(batch, reduction):
    hidden, weight, target = batch
    terms = 2.0 * power_of(1.5) + ak.NCE()
    fused = ak.linear_robust_loss(hidden, weight, target, terms, reduction=reduction)
    plain = ak.robust_loss(F.linear(hidden, weight), target, terms, reduction=reduction)
    for ours, wanted in zip(
        grads(fused, hidden, weight), grads(plain, hidden, weight), strict=True
    ):
        torch.testing.assert_close(ours, wanted)


def test_a_term_that_is_defined_again_runs_anew(batch):
    hidden, weight, target = batch
    for exponent in (1.0, 3.0):
        loss = ak.linear_robust_loss(hidden, weight, target, power_of(exponent))
        with ak.use_backend("reference"):
            wanted = ak.robust_loss(F.linear(hidden, weight), target, power_of(exponent))
        torch.testing.assert_close(loss, wanted)


def test_a_parameter_in_the_formula_receives_its_gradient(batch):
    exponent = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
    loss = ak.linear_robust_loss(*batch, power_of(exponent))
    (grad,) = torch.autograd.grad(loss, exponent)
    assert grad.isfinite()
    assert grad != 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's, of its own modules
def test_compiled_on_the_reference_backend(batch):
    hidden, weight, target = batch
    terms = ak.NCE()

    def loss(hidden, weight):
        return ak.linear_robust_loss(hidden, weight, target, terms)

    with ak.use_backend("reference"):
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        ours = grads(compiled(hidden, weight), hidden, weight)
        wanted = grads(loss(hidden, weight), hidden, weight)
    for actual, one in zip(ours, wanted, strict=True):
        torch.testing.assert_close(actual, one)


def test_heads_that_do_more_than_a_product_are_refused():
    class Adapted(nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden) + 1

    hooked = nn.Linear(4, 9)
    hooked.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(TypeError, match=r"plain nn.Linear, got Adapted"):
        ak.LinearRobustLoss(Adapted(4, 9), ak.NCE())
    with pytest.raises(TypeError, match="no forward hooks"):
        ak.LinearRobustLoss(hooked, ak.NCE())
