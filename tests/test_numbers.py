"""What counts as a number, for every argument that is one."""

from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from torch import nn

import anl_kernels as ak
from anl_kernels import noise, recipes
from anl_kernels.numbers import as_flag, as_int, as_number
from anl_kernels.terms import REGISTRY
from tests.cases import TERMS

LOGITS, TARGET = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 2])
HIDDEN, WEIGHT = torch.randn(6, 4), torch.randn(5, 4)
CRITERION = ak.RobustLoss(ak.CE())

INTS = [2, np.int64(2), np.int8(2), np.uint16(2), np.array(2)]
REALS = [0.5, np.float64(0.5), np.float32(0.5), np.float16(0.5), np.array(0.5)]
NO_NUMBERS = [True, np.True_, "2", None, [2], 2j, np.ones(1), torch.tensor(2), torch.ones(2)]


def loss(**options):
    return ak.robust_loss(LOGITS, TARGET, ak.GCE() + ak.NCE(), **options)


def linear(**options):
    return ak.linear_robust_loss(HIDDEN, WEIGHT, TARGET, ak.GCE(), **options)


def hook(**options):
    optimiser = torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)
    return ak.L1Hook(optimiser, **{"factor": 1.0, **options})


def negative(**options):
    return recipes.NegativeLearning(**{"num_classes": 5, **options})


def truncated(**options):
    return recipes.TruncatedGCE(**{"num_samples": 6, **options})


def symmetric(**options):
    return noise.symmetric(TARGET, **{"rate": 0.5, "num_classes": 5, **options}).labels


def instance(**options):
    return noise.instance_dependent(HIDDEN, TARGET, 0.5, 5, **options).labels


def l1_grad(factor):
    p = nn.Parameter(torch.ones(2))
    ak.add_l1_grad_([p], factor)
    return p.grad


# Each with a call, and whether None has a meaning there.
INT_ARGUMENTS = {
    "ignore_index": (lambda v: loss(ignore_index=v), False),
    "module-ignore_index": (lambda v: ak.RobustLoss(ak.CE(), ignore_index=v), False),
    "num_classes": (lambda v: ak.robust_loss(LOGITS, TARGET % 2, ak.CE(), num_classes=v), True),
    "module-num_classes": (lambda v: ak.RobustLoss(ak.CE(), num_classes=v), True),
    "linear-ignore_index": (lambda v: linear(ignore_index=v), False),
    "chunk_bytes": (lambda v: linear(chunk_bytes=v), True),
    "module-chunk_bytes": (
        lambda v: ak.LinearRobustLoss(nn.Linear(4, 5), ak.CE(), chunk_bytes=v),
        True,
    ),
    "log_prob-ignore_index": (lambda v: ak.log_prob(LOGITS, TARGET, ignore_index=v), False),
    "LogProbLoss-ignore_index": (lambda v: ak.LogProbLoss(torch.neg, ignore_index=v), False),
    "LogProbLoss-num_classes": (lambda v: ak.LogProbLoss(torch.neg, num_classes=v), True),
    "dim": (lambda v: ak.softmax(LOGITS.view(2, 3, 5), v), False),
    "NegativeLearning-num_classes": (lambda v: negative(num_classes=v), False),
    "NegativeLearning-num_negatives": (lambda v: negative(num_negatives=v), False),
    "NegativeLearning-history": (lambda v: negative(history=v), False),
    "NegativeLearning-num_samples": (lambda v: negative(num_samples=v), True),
    "NegativeLearning-ignore_index": (lambda v: negative(ignore_index=v), False),
    "TruncatedGCE-num_samples": (lambda v: truncated(num_samples=v), False),
    "noise-seed": (lambda v: symmetric(seed=v), False),
    "noise-ignore_index": (lambda v: symmetric(ignore_index=v), False),
    "noise-part": (lambda v: instance(part=v), False),
}
REAL_ARGUMENTS = {
    "class_scale": (lambda v: loss(class_scale=v), False),
    "module-class_scale": (lambda v: ak.RobustLoss(ak.CE(), class_scale=v), False),
    "logit_softcap": (lambda v: linear(logit_softcap=v), True),
    "module-logit_softcap": (
        lambda v: ak.LinearRobustLoss(nn.Linear(4, 5), ak.CE(), logit_softcap=v),
        True,
    ),
    "weight of a term": (lambda v: 2.0 * ak.CE() * v, False),
    "divisor": (lambda v: ak.CE() / v, False),
    "alpha": (lambda v: ak.ActiveNegativeLoss(alpha=v), False),
    "EntropyRegularisedLoss-weight": (lambda v: ak.EntropyRegularisedLoss(CRITERION, v), False),
    "factor": (l1_grad, False),
    "L1Hook-factor": (lambda v: hook(factor=v), False),
    "L1Hook-max_norm": (lambda v: hook(max_norm=v), True),
    "NegativeLearning-threshold": (lambda v: negative(threshold=v), False),
    "NegativeLearning-floor": (lambda v: negative(floor=v), False),
    "TruncatedGCE-q": (lambda v: truncated(q=v), False),
    "TruncatedGCE-k": (lambda v: truncated(k=v), False),
    "noise-rate": (lambda v: symmetric(rate=v), False),
}


def over(table):
    return pytest.mark.parametrize(("call", "none"), table.values(), ids=list(table))


def says_what_it_is_given(call, value):
    with pytest.raises((TypeError, ValueError)) as caught:
        call(value)
    message = str(caught.value)
    shape = f"of shape {tuple(value.shape)}" if getattr(value, "ndim", 0) else repr(value)
    assert (shape if not isinstance(value, torch.Tensor) else "tensor") in message


def is_same(ours, wanted):
    if isinstance(wanted, torch.Tensor):
        return torch.equal(ours, wanted)
    return repr(ours) == repr(wanted) or isinstance(ours, ak.L1Hook)


@over(INT_ARGUMENTS)
def test_integers(call, none):
    torch.manual_seed(0)
    wanted = call(2)
    for value in INTS:
        assert is_same(call(value), wanted)


@over(REAL_ARGUMENTS)
def test_real_numbers(call, none):
    wanted = call(0.5)
    for value in REALS:
        assert is_same(call(value), wanted)


@over(INT_ARGUMENTS | REAL_ARGUMENTS)
def test_what_is_no_number(call, none, request):
    # Noise is drawn on the CPU: there a 0-d tensor will do. A weight of a term may be a tensor.
    tensors = not any(word in request.node.callspec.id for word in ("noise", "term", "div", "alph"))
    for value in NO_NUMBERS:
        if (none and value is None) or (isinstance(value, torch.Tensor) and not tensors):
            continue
        says_what_it_is_given(call, value)


@over(INT_ARGUMENTS)
def test_a_float_is_no_integer(call, none):
    for value in (2.0, np.float32(2)):
        says_what_it_is_given(call, value)


@over(REAL_ARGUMENTS)
def test_nan_and_infinity(call, none, request):
    for value in (float("nan"), np.float64("nan"), float("inf")):
        if "max_norm" in request.node.callspec.id and value == float("inf"):
            continue
        with pytest.raises(ValueError, match=r"nan|inf"):
            call(value)


def names_of(term):
    return [field.name for field in fields(term)]


PARAMETERS = [
    pytest.param(term, name, id=f"{type(term).__name__}-{name}")
    for term in {type(term): term for term in TERMS.values()}.values()
    for name in names_of(term)
]


@pytest.mark.parametrize(("term", "name"), PARAMETERS)
def test_parameters_of_terms(term, name):
    given = {field: getattr(term, field) for field in names_of(term)}
    value = given[name]
    kinds = (np.bool_,) if isinstance(value, bool) else (np.float64, np.array)
    for kind in kinds:
        made = type(term)(**{**given, name: kind(value)})
        assert made == term
        assert type(getattr(made, name)) in (bool, float, int)
    bad = ["0.7", None, [0.7], float("nan"), float("inf"), torch.tensor(0.5)]
    for value in bad if isinstance(given[name], bool) else [*bad, True, 2j]:
        with pytest.raises((TypeError, ValueError)) as caught:
            type(term)(**{**given, name: value})
        assert f"{type(term).__name__}: {name} must be" in str(caught.value)


def test_a_term_of_a_user_that_does_not_check():
    @dataclass(frozen=True)
    class Careless(ak.Term):
        power: float
        kind: str = "plain"  # what is no number is the term's own affair

        def __post_init__(self):
            pass

    try:
        assert (1.0 * Careless(np.float32(2))).terms[0].power == 2.0
        with pytest.raises(TypeError, match=r"Careless: power must be a number, got '2'"):
            1.0 * Careless("2")
    finally:
        REGISTRY.pop("Careless", None)


def test_symbolic_numbers_pass():
    shape_env = torch.fx.experimental.symbolic_shapes.ShapeEnv()
    symbol = shape_env.create_unbacked_symint()
    assert as_int(symbol) is symbol
    assert as_number(symbol) is symbol
    assert as_flag(np.True_) is True
    assert as_flag(2) is None


def test_a_module_with_numpy_numbers_compiles_as_a_whole():
    criterion = ak.RobustLoss(
        np.float32(0.5) * ak.GCE(np.float32(0.5)) - ak.NCE() / np.int64(2),
        ignore_index=np.int64(2),
        class_scale=np.float64(3),
        num_classes=np.array(5),
    )
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(LOGITS, TARGET), criterion(LOGITS, TARGET))
