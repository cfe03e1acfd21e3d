"""What a user's own term may get wrong, and what a learned weight may: said, not computed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import anl_kernels as ak
from anl_kernels.terms import REGISTRY

LOGITS, TARGET = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 2])


@pytest.fixture(autouse=True)
def _registry():
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def term_of(formula):
    class Mine(ak.Term):
        def rows(self, row):
            return formula(row)

    return Mine()


WRONG = {
    "one number": (lambda row: row.rest.mean(), ValueError, ["(6,)", "()", "reduction"]),
    "a class each": (lambda row: row.probs, ValueError, ["(6,)", "(6, 5)", "total_others"]),
    "a column": (lambda row: row.rest.unsqueeze(-1), ValueError, ["(6,)", "(6, 1)"]),
    "a float": (lambda row: 1.0, TypeError, ["float", "l_y"]),
    "nothing": (lambda row: None, TypeError, ["NoneType", "l_y"]),
    "an array": (lambda row: row.rest.detach().numpy(), TypeError, ["ndarray", "l_y"]),
    "truth": (lambda row: row.rest > 0.5, TypeError, ["torch.bool", "l_y"]),
    "labels": (lambda row: row.target.squeeze(-1), TypeError, ["torch.int64", "l_y"]),
    "no graph": (lambda row: row.rest.detach(), ValueError, ["differentiable", "detach()"]),
}


@pytest.mark.parametrize(("formula", "kind", "fragments"), WRONG.values(), ids=list(WRONG))
@pytest.mark.parametrize("form", ["logits", "head"])
def test_wrong_rows(formula, kind, fragments, form):
    terms = ak.CE() + term_of(formula)
    logits = LOGITS.clone().requires_grad_()
    of_head = lambda z, y, t: ak.linear_robust_loss(z, torch.eye(5), y, t)  # noqa: E731
    call = ak.robust_loss if form == "logits" else of_head
    with pytest.raises(kind) as caught:
        call(logits, TARGET, terms)
    message = str(caught.value)
    assert [word for word in ("Mine.rows", *fragments) if word not in message] == []


def test_a_term_without_a_formula():
    class Empty(ak.Term):
        pass

    with pytest.raises(NotImplementedError, match="Empty must define rows"):
        ak.robust_loss(LOGITS, TARGET, Empty())


def test_a_term_of_another_dtype_does_not_choose_that_of_the_loss():
    for dtype in (torch.float64, torch.bfloat16):
        terms = term_of(lambda row, dtype=dtype: row.rest.to(dtype))
        loss = ak.robust_loss(LOGITS, TARGET, terms)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(
            loss, ak.robust_loss(LOGITS, TARGET, ak.MAE()), rtol=1e-2, atol=0
        )


def test_a_constant_where_nothing_is_differentiated():
    terms = term_of(lambda row: row.rest.detach())
    assert ak.robust_loss(LOGITS, TARGET, terms).isfinite()
    with torch.no_grad():
        assert ak.robust_loss(LOGITS.clone().requires_grad_(), TARGET, terms).isfinite()


MODULES = {
    "RobustLoss": lambda terms: ak.RobustLoss(terms),
    "LinearRobustLoss": lambda terms: ak.LinearRobustLoss(nn.Linear(4, 5), terms),
    "EntropyRegularisedLoss": lambda terms: ak.EntropyRegularisedLoss(ak.RobustLoss(terms), 1.0),
}


@pytest.mark.parametrize("make", MODULES.values(), ids=list(MODULES))
@pytest.mark.parametrize(
    "weight", [lambda q: 0.5 * q, F.softplus, lambda q: q.exp()], ids=["scaled", "softplus", "exp"]
)
def test_a_computed_weight_is_refused_by_modules(make, weight):
    q = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"nn\.Parameter.*Backward.*0\.5 \* \(q \* ak\.CE\(\)\)"):
        make(weight(q) * ak.CE() + ak.MAE())
    make(weight(q.detach()) * ak.CE() + ak.MAE())


@pytest.mark.parametrize("make", [ak.ActiveNegativeLoss, ak.SymmetricCrossEntropyLoss])
def test_a_computed_alpha_is_refused(make):
    q = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match="learned weight"):
        make(alpha=2 * q)
    assert list(make(alpha=q).parameters()) == [q]


def test_the_cures_of_a_computed_weight():
    q = nn.Parameter(torch.tensor(1.0))
    criterion = ak.RobustLoss(0.5 * (q * ak.CE()) + ak.MAE())
    assert [parameter is q for parameter in criterion.parameters()] == [True]
    grads = []
    for _ in range(2):
        criterion(LOGITS, TARGET).backward()
        grads.append(q.grad)
        q.grad = None
        ak.robust_loss(LOGITS, TARGET, (0.5 * q) * ak.CE() + ak.MAE()).backward()
        grads.append(q.grad)
        q.grad = None
    for grad in grads:
        torch.testing.assert_close(grad, 0.5 * F.cross_entropy(LOGITS, TARGET))
