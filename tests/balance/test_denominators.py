"""What rows report their terms to be divided by, against the formulas."""

import pytest
import torch

import anl_kernels as ak
from anl_kernels.backends.choice import load_backend
from anl_kernels.interface import RowRequest
from tests.balance.definitions import IGNORE, NORMALISED, SOME, problem, sums_of
from tests.cases import CASES, over
from tests.cpu.forms import FORMS as CPU_FORMS
from tests.forms import FORMS, forced
from tests.helpers import error
from tests.shards import SPLITS, logits_of, run_shards

SHAPES = [(7,), (5, 6), (2, 6, 4), (2, 6, 2, 3)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def over_some():
    return pytest.mark.parametrize("terms", SOME.values(), ids=SOME)


def found(logits, target, terms, **options):
    _, aux = ak.robust_loss(logits, target, terms, return_aux="denominators", **options)
    return aux.denominators


def assert_right(logits, target, terms, wanted=None):
    made = found(logits, target, terms)
    wanted = sums_of(logits, target, terms) if wanted is None else wanted
    assert made.shape == (len(terms), *target.shape)
    assert made.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    for ours, theirs in zip(made, wanted, strict=True):
        assert error(ours, theirs) <= TOLERANCE[made.dtype]
    assert not made[:, target == IGNORE].any()


@over([*NORMALISED, "CE-smoothed", "all"])
def test_terms(terms, backend, device, poisoned):
    """Plain terms are divided by 1."""
    for shape in SHAPES[1:3] if backend == "triton" else SHAPES:
        assert_right(*problem(shape, device=device), terms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@over_some()
def test_dtypes(terms, dtype, backend, device, poisoned):
    for shape in [(5, 6), (2, 6, 4)]:
        assert_right(*problem(shape, dtype, device), terms)


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_forms_of_gpus(form, device, monkeypatch, poisoned):
    with forced(*form, monkeypatch):
        for name in ("ANL-CE", "mixed"):
            assert_right(*problem((3, 37), device=device), SOME[name])


@pytest.mark.parametrize("form", CPU_FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forms_of_the_cpu(form, dtype, poisoned):
    """Rows of several pieces, tiles, and rows that threads share."""
    form, terms = CPU_FORMS[form], SOME["mixed"] + ak.NNCE() + ak.NFL() + ak.NGCE()
    logits, target = form.logits(dtype), form.labels()
    target.view(-1)[0] = IGNORE
    threads = torch.get_num_threads()
    torch.set_num_threads(form.threads)
    try:
        with ak.use_backend("cpu"):
            assert_right(logits, target, terms)
    finally:
        torch.set_num_threads(threads)


@over_some()
def test_missing_classes(terms, backend, device, poisoned):
    """A logit of -inf enters no sum."""
    logits, target = problem((4, 9), device=device, ignored=False)
    there = torch.tensor([0, 2, 3, 5, 6, 8], device=device)
    masked = torch.full_like(logits, -torch.inf).index_copy(1, there, logits[:, there])
    target = target % len(there)
    assert_right(masked, there[target], terms, sums_of(logits[:, there], target, terms))


def test_an_absent_label(backend, device):
    """NCE is divided by infinity there, and no other row is touched."""
    logits, target = problem((3, 6), device=device, ignored=False)
    whole = found(logits, target, ak.NCE())
    logits[1, target[1]] = -torch.inf
    made = found(logits, target, ak.NCE())
    assert made[0, 1] == torch.inf
    assert torch.equal(made[0, [0, 2]], whole[0, [0, 2]])


def test_nan_is_of_its_row(backend, device):
    logits, target = problem((3, 6), device=device, ignored=False)
    logits[1, 2] = torch.nan
    assert found(logits, target, CASES["ANL-CE"]).isnan().all(0).tolist() == [False, True, False]


def test_one_class(backend, device):
    terms = CASES["ANL-CE"] + ak.NGCE() + ak.MAE()
    logits, target = torch.randn(3, 1, device=device), torch.zeros(3, device=device).long()
    made = found(logits, target, terms)
    torch.testing.assert_close(made.cpu(), sums_of(logits, target, terms).float().cpu())


@pytest.mark.parametrize("terms", [SOME["ANL-CE"], SOME["mixed"]], ids=["ANL-CE", "mixed"])
def test_shards(terms, kernels, device, poisoned):
    """Numbers of whole rows out of shards of them."""
    logits, target = logits_of(torch.float64, "rows", device)
    there = logits[0] > -torch.inf
    places = (there.cumsum(0) - 1)[target.clamp(min=0)].masked_fill(target == IGNORE, IGNORE)
    names = ("row_losses", "saved", "denominators", "term_slopes")
    request = RowRequest.of(terms, IGNORE, *names)
    one = torch.ones((), dtype=torch.float64, device=device)
    whole = load_backend(kernels).row_loss(logits, target, one, None, request)
    parts, _, _ = run_shards(load_backend(kernels), logits, target, request, SPLITS["uneven"], one)
    # Both labels whose classes are not there make infinities.
    finite = whole.denominators.isfinite().all(1)
    wanted = sums_of(logits[:, there], places, terms).t()
    assert error(parts.denominators[finite], wanted[finite]) <= 1e-12
    assert torch.equal(parts.denominators.isfinite(), whole.denominators.isfinite())
    assert error(parts.term_slopes, whole.term_slopes) <= 1e-12
    slopes = whole.term_slopes.view(-1, len(terms), 2).sum(1)
    counted = target != IGNORE
    assert error(slopes[counted], whole.saved[counted, 2:4]) <= 1e-12
    assert not slopes[~counted].any()


@pytest.mark.parametrize("door", ["plain", "two-labels", "soft", "head", "head-two-labels"])
def test_doors(door, backend, device):
    terms = SOME["mixed"]
    logits, target = problem((5, 6), device=device)
    other = target.flip(0).masked_fill(target.flip(0) == IGNORE, 2)
    options = {"target_b": other, "lam": 0.3} if "two" in door else {}
    if "head" in door:
        hidden, weight = logits, torch.eye(6, dtype=torch.float64, device=device)
        _, aux = ak.linear_robust_loss(
            hidden, weight, target, terms, return_aux=("denominators", "p_y"), **options
        )
        made = aux.denominators
    else:
        given = logits.softmax(1) if door == "soft" else target
        made = found(logits, given, terms, **options)
    counted = target.clamp(min=0) if options or door == "soft" else target
    assert error(made, sums_of(logits, counted, terms)) <= 1e-12


def test_a_batch_of_no_rows(backend, device):
    logits, target = torch.empty(0, 6, device=device), torch.empty(0, device=device).long()
    assert found(logits, target, CASES["ANL-CE"]).shape == (2, 0)


def test_only_by_name(backend, device):
    """``return_aux=True`` gives what it always gave."""
    logits, target = problem((3, 6), device=device)
    _, aux = ak.robust_loss(logits, target, ak.NCE(), return_aux=True)
    assert aux.denominators is None
    assert not found(logits.requires_grad_(), target, ak.NCE()).requires_grad
