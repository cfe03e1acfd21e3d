"""Terms and their sums as values."""

import copy
import pickle
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
import torch

import anl_kernels as ak
from anl_kernels.terms import REGISTRY, Terms, as_terms
from anl_kernels.terms.encoding import decode, encode
from tests.cases import CASES, TERMS, over
from tests.helpers import loss_and_grad


def items(terms):
    return [(weight, term) for weight, term in as_terms(terms)]


def test_addition_and_multiplication():
    terms = 5.0 * ak.NCE() + ak.NNCE() * 2 + ak.MAE()
    assert isinstance(terms, ak.Terms)
    assert items(terms) == [(5.0, ak.NCE()), (2.0, ak.NNCE()), (1.0, ak.MAE())]
    assert len(terms) == 3
    assert all(isinstance(weight, float) for weight, _ in terms)


def test_multiplication_distributes():
    assert items(2 * (ak.NCE() + 3 * ak.MAE())) == [(2.0, ak.NCE()), (6.0, ak.MAE())]
    assert items((ak.NCE() + ak.MAE()) * 0.5) == [(0.5, ak.NCE()), (0.5, ak.MAE())]


def test_sums_add():
    left, right = ak.NCE() + ak.MAE(), ak.CE() + ak.RCE()
    assert [type(term).__name__ for _, term in left + right] == ["NCE", "MAE", "CE", "RCE"]
    assert items(ak.CE() + left) == [(1.0, ak.CE()), *items(left)]


def test_builtin_sum():
    assert sum([ak.NCE(), 2 * ak.MAE()]) == ak.NCE() + 2 * ak.MAE()
    assert sum([ak.NCE()]) == as_terms(ak.NCE())


def test_subtraction_negation_and_division():
    assert items(ak.CE() - 2 * ak.MAE()) == [(1.0, ak.CE()), (-2.0, ak.MAE())]
    assert items(-ak.CE()) == [(-1.0, ak.CE())]
    assert items(-(ak.CE() - ak.MAE())) == [(-1.0, ak.CE()), (1.0, ak.MAE())]
    assert items((49 * ak.CE() + ak.MAE()) / 49) == [(1.0, ak.CE()), (1 / 49, ak.MAE())]
    learned = torch.tensor(4.0, requires_grad=True)
    ((weight, _),) = items(ak.CE() / learned)
    assert weight.item() == 0.25
    assert weight.requires_grad


@pytest.mark.parametrize("zero", [0, 0.0, np.int64(0)])
@pytest.mark.parametrize("terms", [ak.CE(), ak.CE() + 2 * ak.MAE()], ids=["term", "sum"])
def test_zero_is_the_empty_sum(terms, zero):
    same, negative = items(terms), items(-terms)
    assert items(terms + zero) == items(zero + terms) == items(terms - zero) == same
    assert items(zero - terms) == negative


@pytest.mark.parametrize("terms", [ak.CE(), ak.CE() + 2 * ak.MAE()], ids=["term", "sum"])
@pytest.mark.parametrize("number", [np.float32(2), np.int64(2), np.array(2.0)])
def test_numbers_of_numpy_do_not_take_a_sum_for_an_array(terms, number):
    assert number * terms == terms * number == 2 * terms
    assert terms / number == terms / 2
    assert all(type(factor) is float for factor in (number * terms).factors)


@pytest.mark.parametrize("terms", [ak.CE(), ak.CE() + 2 * ak.MAE()], ids=["term", "sum"])
@pytest.mark.parametrize(
    ("compute", "fragments"),
    [
        (lambda t: 2 / t, ["divisor", "2 /", "multiply"]),
        (lambda t: t / t, ["weight", "CE", "number"]),
        (lambda t: t * t, ["weight", "CE", "number", "+"]),
        (lambda t: t * "2", ["weight", "'2'", "float()"]),
        (lambda t: None * t, ["weight", "None", "float()"]),
        (lambda t: True * t, ["weight", "True", "float()"]),
        (lambda t: [2.0] * t, ["weight", "[2.0]", "float()"]),
        (lambda t: np.ones(2) * t, ["weight", "shape (2,)", "float()"]),
        (lambda t: t - 1, ["term", "1", "2.0 * ak.CE()"]),
        (lambda t: 1 - t, ["term", "1", "2.0 * ak.CE()"]),
        (lambda t: t + False, ["term", "False", "2.0 * ak.CE()"]),
    ],
)
def test_what_is_no_algebra(terms, compute, fragments):
    with pytest.raises(TypeError) as caught:
        compute(terms)
    assert [word for word in fragments if word not in str(caught.value)] == []


def test_division_by_zero():
    with pytest.raises(ValueError, match="divided by 0"):
        ak.CE() / 0


def test_a_negative_weight_on_every_backend(backend, device):
    logits = torch.randn(4, 7, dtype=torch.float64, device=device)
    target = torch.tensor([0, 3, 6, -100], device=device)
    first, second = 2.0 * ak.GCE() + ak.NCE(), ak.NNCE() + ak.CE(0.1)
    loss, grad = loss_and_grad(logits, target, first - second / 4)
    parts = [loss_and_grad(logits, target, terms) for terms in (first, second)]
    torch.testing.assert_close(loss, parts[0][0] - parts[1][0] / 4)
    torch.testing.assert_close(grad, parts[0][1] - parts[1][1] / 4)


def test_repeated_terms_are_kept():
    assert len(ak.NCE() + ak.NCE()) == 2


@over()
def test_repr_evaluates_to_the_value(terms):
    assert eval(repr(terms), vars(ak)) == terms


def test_repr_reads_as_written():
    assert (
        repr(5.0 * ak.NCE() + 0.1 * ak.GCE(0.5)) == "5.0 * NCE() + 0.1 * GCE(q=0.5, min_prob=0.0)"
    )
    difference = 0.5 * ak.NCE() - 0.1 * ak.MAE() - ak.CE()
    assert repr(difference) == "0.5 * NCE() - 0.1 * MAE() - 1.0 * CE(label_smoothing=0.0)"
    assert eval(repr(-difference), vars(ak)) == -difference
    assert "tensor" in repr(torch.tensor(2.0) * ak.NCE())


def test_equality_and_hash():
    assert ak.GCE(0.7) == ak.GCE()
    assert ak.GCE(0.7) != ak.GCE(0.5)
    assert ak.FL(0.5) != ak.NFL(0.5)
    first, second = (2 * ak.NCE() + ak.GCE(0.5) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != 3 * ak.NCE() + ak.GCE(0.5)
    assert len({first, second, as_terms(ak.NCE())}) == 2


@pytest.mark.parametrize("term", TERMS.values(), ids=list(TERMS))
def test_terms_are_immutable(term):
    names = [field.name for field in fields(term)]
    for name in [*names, "anything"]:
        with pytest.raises(FrozenInstanceError):
            setattr(term, name, 1.0)
    with pytest.raises(FrozenInstanceError):
        (2 * term).terms = ()


def test_arithmetic_makes_new_values():
    base = ak.NCE() + ak.MAE()
    before = items(base)
    assert base * 2 != base
    assert base + ak.CE() != base
    assert items(base) == before


@pytest.mark.parametrize("make", [lambda w, t: w * t, lambda w, t: t * w])
@pytest.mark.parametrize("operand", [ak.NCE(), ak.NCE() + 2 * ak.MAE()], ids=["term", "sum"])
def test_tensor_weights(make, operand):
    weight = torch.tensor(2.0, requires_grad=True)
    terms = make(weight, operand)
    assert isinstance(terms, Terms)
    weight, _ = next(iter(terms))
    assert weight.item() == 2.0
    assert weight.requires_grad


@pytest.mark.parametrize("operand", ["NCE", None, [ak.NCE()], object()])
def test_foreign_operands(operand):
    for left in (ak.NCE(), ak.NCE() + ak.MAE()):
        with pytest.raises(TypeError):
            left + operand
        with pytest.raises(TypeError):
            operand + left


@pytest.mark.parametrize("number", [1, 2.0, -1])
def test_a_number_is_no_term(number):
    with pytest.raises(TypeError):
        ak.NCE() + number
    with pytest.raises(TypeError):
        number + ak.NCE()


@over()
def test_functors_and_numbers_stand_for_the_sum(terms):
    functors, numbers, moving = encode(terms)
    assert moving is None
    assert decode(functors, tuple(numbers)) == terms


def test_an_unknown_term_is_refused():
    with pytest.raises(ValueError, match=r"unknown term 'Nope'.*NCE"):
        decode("CE:ce,Nope:nope", (1.0,) * 9)


@over()
def test_copies_and_pickles(terms):
    terms.derived(iter)  # what is kept with the terms may not be picklable
    assert copy.deepcopy(terms) == terms
    assert pickle.loads(pickle.dumps(terms)) == terms


def test_registry_holds_every_public_term():
    public = {
        name
        for name in ak.__all__
        if isinstance(getattr(ak, name), type) and issubclass(getattr(ak, name), ak.Term)
    }
    assert public == set(REGISTRY) | {"Term"}


def test_a_new_term_is_registered_and_runs(device):
    class Square(ak.Term):
        def rows(self, row):
            return row.rest.square()

    try:
        assert REGISTRY["Square"] is Square
        logits = torch.randn(3, 4, device=device)
        target = torch.tensor([0, 1, 2], device=device)
        with ak.use_backend("reference"):
            loss = ak.robust_loss(logits, target, 2.0 * Square(), reduction="none")
        p_y = logits.softmax(1)[torch.arange(3), target]
        torch.testing.assert_close(loss, 2 * (1 - p_y) ** 2)
    finally:
        del REGISTRY["Square"]


def test_hyper_parameters_are_run_time_numbers():
    """Values enter a kernel at run time: the same functors, whatever they are."""
    first, second = ak.GCE(0.7), ak.GCE(0.2)
    assert first.functor == second.functor
    assert first.scalars() != second.scalars()


def test_every_term_has_at_most_three_scalars():
    assert all(len(term.scalars()) <= 3 for _, term in CASES["all"])


def test_a_sum_that_an_earlier_release_pickled():
    """Its state had the parts alone."""
    terms = 2.0 * ak.NCE() - 0.5 * ak.NNCE(min_prob=1e-3)
    old = object.__new__(Terms)
    old.__setstate__({"parts": terms.parts})
    assert old == terms
    assert old.plain
