"""The kernels for shards in the forms that the CPU's take."""

import math

import pytest
import torch

import anl_kernels as ak
from anl_kernels.backends.choice import load_backend
from anl_kernels.interface import AUX, RowRequest
from anl_kernels.terms import as_terms
from tests.cpu.forms import DTYPES, FORMS, each_row, over_some
from tests.helpers import error, random_rows, rows
from tests.shards import IGNORE, OF_ROWS, assert_merged, assert_partials, finishing

ONE = as_terms(ak.NNCE(min_prob=1e-7))
SEVERAL = as_terms(ak.NNCE(min_prob=1e-7) + ak.CE() + ak.NFL())


@pytest.fixture
def kernels():
    return load_backend("cpu")


@pytest.fixture(params=FORMS)
def form(request, threads):
    """PyTorch has the threads with which the form's shape is served in that form."""
    form = FORMS[request.param]
    threads(form.threads)
    return form


def shard_of(form, dtype=torch.float32):
    """A shard with classes that are not there, a label elsewhere and an ignored row if it can."""
    logits, target = form.logits(dtype), form.labels()
    rows(logits)[..., [5, form.num_classes - 1]] = -torch.inf
    target = target.clamp(6, form.num_classes - 2)
    target.view(-1)[0] = -1
    target.view(-1)[2:3] = IGNORE
    return logits, target


def nnce_sums(row, label):
    """Sums of phi and of its slope over the others of a row."""
    lowest = math.log(1e-7)
    l = row.log_softmax(0)
    if label >= 0:
        l[label] = -torch.inf
    return torch.stack([(l - lowest).clamp(min=0).sum(), (l >= lowest).sum()])


def tolerance_of(dtype):
    """To what thousands of float32 operations may add."""
    return 1e-12 if dtype == torch.float64 else 2e-6


def all_results(kernels, logits, target, terms):
    """Partials, best and sums, as if the shard was all there is."""
    request = RowRequest.of(terms, IGNORE, *AUX)
    partials, best = kernels.shard_partials(logits, target, request)
    return partials, best, kernels.shard_sums(logits, target, partials, request)


def assert_same_bits(ours, others):
    assert all(torch.equal(one, other) for one, other in zip(ours, others, strict=True))


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_partials(dtype, index, form, kernels, poisoned):
    logits, target = shard_of(form, dtype)
    partials, best, _ = all_results(kernels, logits, target.to(index), ONE)
    assert_partials((partials, best), logits, target, tolerance_of(dtype))


@pytest.mark.parametrize("terms", [ONE, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums(dtype, terms, form, kernels, poisoned):
    logits, target = shard_of(form, dtype)
    _, _, sums = all_results(kernels, logits, target, terms)
    wanted = torch.stack([nnce_sums(*row) for row in each_row(logits.double(), target)])
    for column, other in zip(sums.unbind(1), wanted.unbind(1), strict=False):
        assert error(column, other) <= tolerance_of(dtype)


@pytest.mark.parametrize("aux", [False, True])
@over_some("ANL-CE", "all")
def test_merged(terms, aux, form, poisoned):
    logits, target = shard_of(form)
    target = target.where(target != -1, 7)
    K = form.num_classes
    for splits in ((0, K), (0, 1, 100, K), (0, K // 2 + 1, K)):
        assert_merged("cpu", logits, target, terms, splits, 2e-6, aux=aux)


@over_some("ANL-CE", "all")
def test_bits_do_not_depend_on_threads(terms, form, kernels, threads):
    logits, target = shard_of(form)
    first = all_results(kernels, logits, target, terms)
    for number in (1, 2, 3, 4):
        threads(number)
        assert_same_bits(all_results(kernels, logits, target, terms), first)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37, 150), (3, 9001), (1, 40001)])
def test_bits_do_not_depend_on_the_class_stride(shape, dtype, kernels):
    logits, target = random_rows(*shape, dtype)
    logits[0, 77] = -torch.inf
    strided = torch.full((*shape, 2), torch.nan, dtype=dtype)[..., 1].copy_(logits)
    for terms in (ONE, SEVERAL):
        ours = all_results(kernels, strided, target, terms)
        assert_same_bits(ours, all_results(kernels, logits, target, terms))


@pytest.mark.parametrize("num_classes", [1, 2, 64, 300, 5000])
@pytest.mark.parametrize("label", [-1, 0])
def test_a_shard_without_other_classes(label, num_classes, kernels, poisoned):
    logits = torch.full((3, num_classes), -torch.inf)
    logits[:, 0] = 2.0 if label == 0 else -torch.inf
    target = torch.full((3,), label)
    partials, _, _ = all_results(kernels, logits, target, ONE)
    z_y = 2.0 if label == 0 else -torch.inf
    assert partials.tolist() == [[-torch.inf, 0.0, 0.0, 0.0, z_y]] * 3
    # The other classes of the rows are in another shard.
    partials = torch.tensor([[3.0, 1.5, -0.5, 2.0, 2.0]]).repeat(3, 1)
    for terms in (ONE, SEVERAL):
        assert not kernels.shard_sums(logits, target, partials, RowRequest.of(terms, IGNORE)).any()


@pytest.mark.parametrize("num_classes", [9, 5000])
def test_one_row_without_a_batch(num_classes, kernels, poisoned):
    logits, target = random_rows(1, num_classes)
    whole = all_results(kernels, logits, target, SEVERAL)
    assert_same_bits(all_results(kernels, logits[0], target[0], SEVERAL), whole)


def test_weights_of_terms(kernels, poisoned):
    logits, target = random_rows(5, 300)
    request = RowRequest.of(SEVERAL, IGNORE, *OF_ROWS, *AUX)
    partials, _, sums = all_results(kernels, logits, target, SEVERAL)
    weights = torch.tensor([2.0, 0.5, 3.0])
    ours = kernels.shard_finish(partials, sums, target, weights, finishing(request))
    wanted = kernels.row_loss(logits, target, torch.ones(()), weights, request)
    for name in ("row_losses", "saved", "term_losses", "lse", "p_y"):
        assert error(getattr(ours, name), getattr(wanted, name)) <= 1e-6, name


def test_partials_that_do_not_fit_are_refused(kernels):
    logits, target = random_rows(5, 30)
    request = RowRequest.of(ONE, IGNORE)
    partials, _, sums = all_results(kernels, logits, target, ONE)
    with pytest.raises(RuntimeError, match=r"expected \(5, 5\)"):
        kernels.shard_sums(logits, target, partials[:4], request)
    with pytest.raises(RuntimeError, match=r"expected \(5, 5\)"):
        kernels.shard_sums(logits, target, partials.double(), request)
    with pytest.raises(RuntimeError, match=r"expected \(5, 2\)"):
        kernels.shard_finish(partials, sums[:, :1], target, None, request)
