"""Tiles, rows and split rows: the same results, whatever the shape and the threads."""

import pytest
import torch

import anl_kernels as ak
from tests.cases import CASES, over
from tests.cpu.forms import (
    DTYPES,
    FORMS,
    ROUNDING,
    SOME,
    assert_close,
    assert_same_bits,
    each_row,
    over_some,
    reference,
    results,
)
from tests.helpers import error, loss_and_grad, random_rows, rows

TERMS = CASES["ANL-CE"]
ONE_LABEL_EACH = (0, 63, 64, 2047, 2048, 4095, 4096, 8191, 8192, -1)


@pytest.fixture(params=FORMS)
def form(request, threads):
    """PyTorch has the threads with which the form's shape is served in that form."""
    form = FORMS[request.param]
    threads(form.threads)
    return form


@pytest.mark.parametrize("dtype", DTYPES)
@over_some()
def test_values_of_terms(terms, dtype, form, poisoned):
    logits, target = form.logits(dtype), form.labels()
    assert_close(results(logits, target, terms), reference(logits, target, terms), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [1, 2, 191, 192, 193, 2048, 2049, 4095, 4096, 4097])
@over_some("ANL-CE", "all")
def test_sizes(terms, num_classes, dtype, poisoned):
    logits, target = random_rows(3, num_classes, dtype)
    target[0], target[1] = 0, num_classes - 1
    assert_close(results(logits, target, terms), reference(logits, target, terms), dtype)


@pytest.mark.parametrize("shape", [(0, 5), (0, 9001), (0, 5, 3), (2, 5, 0)])
def test_no_rows(shape, poisoned):
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.int64)
    ours = results(torch.zeros(shape), target, TERMS)
    assert ours.loss.shape == target.shape
    assert ours.one_pass.shape == ours.recomputed.shape == ours.aux.probs.shape == shape
    assert ak.softmax(torch.zeros(shape), 1).shape == shape


@pytest.mark.parametrize("num_rows", [1, 15, 16, 17, 31, 33, 255, 257])
def test_numbers_of_rows_in_tiles(num_rows, poisoned):
    logits, target = random_rows(num_rows, 10, torch.float32)
    ours, wanted = results(logits, target, TERMS), reference(logits, target, TERMS)
    assert_close(ours, wanted, torch.float32)


@pytest.mark.parametrize("num_classes", [(1 << 15) - 1, 1 << 15, (1 << 15) + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_split_row_has_the_bits_of_a_whole_one(dtype, num_classes, threads):
    logits, target = random_rows(1, num_classes, dtype)
    logits[0, 5] = -torch.inf
    for terms in SOME.values():
        threads(1)
        whole = results(logits, target, terms)
        threads(2)
        assert_same_bits(results(logits, target, terms), whole)


@over_some("ANL-CE", "all")
def test_bits_do_not_depend_on_threads(terms, form, threads):
    logits, target = form.logits(), form.labels()
    first = results(logits, target, terms)
    assert_same_bits(results(logits, target, terms), first)
    for number in (1, 2, 3, 4):
        threads(number)
        assert_same_bits(results(logits, target, terms), first)


def test_labels_at_every_border(form, poisoned):
    labels = [label for label in ONE_LABEL_EACH if label < form.num_classes]
    labels[-1] = form.num_classes - 1
    logits = form.logits()
    while labels:
        target = form.labels(*labels[: form.num_rows])
        labels = labels[form.num_rows :]
        ours, wanted = results(logits, target, TERMS), reference(logits, target, TERMS)
        assert_close(ours, wanted, torch.float32)


@pytest.mark.parametrize("which", ["first", "last", "all", "all-but-first"])
def test_ignored_rows_are_not_read(which, form, poisoned):
    logits, target = form.logits(), form.labels()
    wanted = results(logits, target, TERMS)
    ignored = torch.zeros(target.shape, dtype=torch.bool)
    flat = ignored.view(-1)
    flat[{"first": slice(1), "last": slice(-1, None)}.get(which, slice(None))] = True
    flat[:1] &= which != "all-but-first"
    target = target.masked_fill(ignored, -100)
    rows(logits)[ignored] = torch.nan
    for reduction, grad in (("sum", wanted.one_pass), ("none", wanted.recomputed)):
        loss, ours = loss_and_grad(logits, target, TERMS, reduction=reduction)
        losses = wanted.loss.masked_fill(ignored, 0)
        torch.testing.assert_close(loss, losses.sum() if reduction == "sum" else losses)
        assert torch.equal(rows(ours), rows(grad).masked_fill(ignored.unsqueeze(-1), 0))


HOLES = {
    "before": lambda y, K: [y - 1],
    "after": lambda y, K: [y + 1],
    "the-block": lambda y, K: range(y // 64 * 64, y // 64 * 64 + 64),
    "the-piece": lambda y, K: range(y // 4096 * 4096, y // 4096 * 4096 + 4096),
    "another-piece": lambda y, K: range((y // 4096 ^ 1) * 4096, (y // 4096 ^ 1) * 4096 + 4096),
    "ends": lambda y, K: [0, K - 1],
    "all-but-one": lambda y, K: range(1, K),
    "all": lambda y, K: range(K),
}


def with_holes(logits, target, holes, target_too):
    logits = logits.clone(memory_format=torch.preserve_format)
    for z, y in each_row(logits, target):
        absent = torch.zeros(len(z), dtype=torch.bool)
        absent[[k for k in HOLES[holes](y, len(z)) if 0 <= k < len(z)]] = True
        absent[y] = target_too
        z[absent] = -torch.inf
    return logits


@pytest.mark.parametrize("holes", HOLES)
@over(("ANL-CE", "AMSE"))
def test_missing_classes(terms, holes, form, poisoned):
    target = form.labels(1, 70, 149)
    logits = with_holes(form.logits(torch.float64), target, holes, target_too=False)
    ours, wanted = results(logits, target, terms), reference(logits, target, terms)
    assert_close(ours, wanted, torch.float64)
    absent = logits == -torch.inf
    assert not ours.one_pass[absent].any()
    assert not ours.recomputed[absent].any()


@pytest.mark.parametrize("holes", ["the-block", "another-piece", "ends"])
def test_a_missing_target(holes, form, poisoned):
    target = form.labels(1, 70, 149)
    logits = with_holes(form.logits(torch.float64), target, holes, target_too=True)
    terms = ak.GCE() + ak.NNCE() + ak.AMSE(a=30)
    ours, wanted = results(logits, target, terms), reference(logits, target, terms)
    for one, other in zip(ours[:3], wanted[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@over_some("ANL-CE", "all")
def test_a_row_that_is_not_finite_harms_no_other(terms, value, form, poisoned):
    logits, target = form.logits(), form.labels()
    wanted = results(logits, target, terms)
    last = (-1,) * target.dim()
    rows(logits)[last][7] = value
    ours = results(logits, target, terms)
    harmed = torch.zeros(target.shape, dtype=torch.bool)
    harmed[last] = True
    assert ours.loss.isnan().equal(harmed)
    for one, other in zip(ours[1:3], wanted[1:3], strict=True):
        assert rows(one).isnan().any(-1).equal(harmed)
        assert error(rows(one)[~harmed], rows(other)[~harmed]) <= 1e-6


@pytest.mark.parametrize("holes", [None, "the-block"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@over_some("ANL-CE", "all")
def test_inplace_has_the_same_bits(terms, dtype, reduction, holes, form):
    logits, target = form.logits(dtype), form.labels()
    if holes:
        logits = with_holes(logits, target, holes, target_too=False)
    assert_inplace_has_the_same_bits(logits, target, terms, reduction)


def assert_inplace_has_the_same_bits(logits, target, terms, reduction="sum"):
    wanted_loss, wanted = loss_and_grad(logits, target, terms, reduction=reduction)
    computed = torch.empty_strided(logits.shape, logits.stride(), dtype=logits.dtype)
    computed = computed.copy_(logits).requires_grad_() * 1
    if computed.stride() != logits.stride():
        computed = torch.zeros(*logits.shape, 2, dtype=logits.dtype, requires_grad=True)
        computed = (computed * 1)[..., 0]
        with torch.no_grad():
            computed.copy_(logits)
    loss = ak.robust_loss(computed, target, terms, reduction=reduction, inplace=True)
    torch.autograd.grad(loss.sum(), computed)
    assert torch.equal(loss.detach(), wanted_loss)
    assert torch.equal(computed.detach(), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37, 150), (3, 9001), (1, 40001)])
def test_bits_do_not_depend_on_alignment(shape, dtype):
    logits, target = random_rows(*shape, dtype)
    moved = torch.empty(logits.numel() + 1, dtype=dtype)[1:].view(shape).copy_(logits)
    assert moved.data_ptr() % 8 != 0 or dtype == torch.float64
    for terms in SOME.values():
        assert_same_bits(results(moved, target, terms), results(logits, target, terms))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37, 150), (3, 9001), (1, 40001)])
def test_bits_do_not_depend_on_the_class_stride(shape, dtype):
    logits, target = random_rows(*shape, dtype)
    logits[0, 77] = -torch.inf
    strided = torch.full((*shape, 2), torch.nan, dtype=dtype)[..., 1].copy_(logits)
    for terms in SOME.values():
        assert_same_bits(results(strided, target, terms), results(logits, target, terms))


@over_some("ANL-CE", "GCE", "all")
def test_large_outputs_past_the_cache_have_the_same_bits(terms):
    """8 MiB and more are streamed where they are aligned, and not in place."""
    logits, target = random_rows(65, 33001, torch.float32)
    loss, grad = loss_and_grad(logits, target, terms, reduction="sum")
    _, recomputed = loss_and_grad(logits, target, terms, reduction="none")
    parts = [loss_and_grad(logits[i : i + 5], target[i : i + 5], terms) for i in range(0, 65, 5)]
    assert loss == pytest.approx(sum(5 * part for part, _ in parts).item(), rel=1e-5)
    assert error(torch.cat([5 * part for _, part in parts]), grad) <= 1e-6
    for i in range(0, 65, 5):
        z, y = logits[i : i + 5], target[i : i + 5]
        assert torch.equal(grad[i : i + 5], loss_and_grad(z, y, terms, reduction="sum")[1])
        assert torch.equal(recomputed[i : i + 5], loss_and_grad(z, y, terms, reduction="none")[1])


@pytest.mark.parametrize("num_rows", [1, 3])
def test_rows_too_long_for_two_at_a_time(num_rows, poisoned):
    logits, target = random_rows(num_rows, (1 << 18) + 5, torch.float32)
    ours, wanted = results(logits, target, TERMS), reference(logits, target, TERMS)
    assert_close(ours, wanted, torch.float32)


@pytest.mark.parametrize("number", [1, 2])
def test_rows_too_long_to_be_kept(number, threads):
    """Split (one row for two threads) and not."""
    threads(number)
    logits, target = random_rows(1, (1 << 22) + 3, torch.float32)
    logits[0, 4096:8192] = logits[0, -1] = -torch.inf
    target[0] = 8192
    ours, wanted = results(logits, target, TERMS), reference(logits, target, TERMS)
    assert_close(ours, wanted, torch.float32)
    assert not ours.one_pass[logits == -torch.inf].any()
    assert_inplace_has_the_same_bits(logits, target, TERMS)


def test_argmax_takes_the_first_of_equals(form):
    logits = torch.zeros_like(form.logits())
    pairs = [(0, form.num_classes - 1), (63, 64), (149, form.num_classes - 1), (5, 6)]
    for best in pairs:
        rows(logits).zero_()[..., list(best)] = 2.0
        for label in (0, *best):
            target = form.labels(label)
            _, aux = ak.robust_loss(logits, target, ak.CE(), return_aux="argmax")
            assert (aux.argmax == best[0]).all()


@pytest.mark.parametrize("label", [-1, 1 << 16, -(2**31)])
def test_label_out_of_range_is_nan_in_its_row_only(label, form, monkeypatch):
    monkeypatch.setattr("anl_kernels.rows.labels.recorded_for_others", lambda: True)
    monkeypatch.setattr("anl_kernels.functional.plain_loss", lambda *_: None)
    logits, target = form.logits(), form.labels()
    wanted = results(logits, target, TERMS)
    outside = torch.zeros(target.shape, dtype=torch.bool)
    outside[(0,) * target.dim()] = True
    ours = results(logits, target.masked_fill(outside, label), TERMS)
    assert ours.loss.isnan().equal(outside)
    for one, other in zip(ours[1:3], wanted[1:3], strict=True):
        assert rows(one).isnan().all(-1).equal(outside)
        assert torch.equal(rows(one)[~outside], rows(other)[~outside])


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax(dtype, form, poisoned):
    logits = form.logits(dtype).requires_grad_()
    up = torch.randn(logits.shape).to(dtype)
    probs = ak.softmax(logits, 1)
    (grad,) = torch.autograd.grad(probs, logits, up)
    with ak.use_backend("reference"):
        wide = logits.detach().double().requires_grad_()
        wanted = ak.softmax(wide, 1)
        (wanted_grad,) = torch.autograd.grad(wanted, wide, up.double())
    assert error(probs, wanted) <= ROUNDING[dtype]
    assert error(grad, wanted_grad) <= 3 * ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_entropy_regulariser(dtype, form, poisoned):
    logits = form.logits(dtype).requires_grad_()
    counted = form.labels(1, 1, 0).bool()
    counted[(0,) * counted.dim()] = True

    def ours():
        value = ak.entropy_regulariser(logits, counted=counted, min_prob=1e-6)
        return value, *torch.autograd.grad(value, logits)

    with ak.use_backend("reference"):
        wide = logits.detach().double().requires_grad_()
        wanted = ak.entropy_regulariser(wide, counted=counted, min_prob=1e-6)
        (wanted_grad,) = torch.autograd.grad(wanted, wide)
    first, second = ours(), ours()
    assert all(map(torch.equal, first, second))  # with the same number of threads
    assert error(first[0], wanted) <= max(1e-12, ROUNDING[torch.float32] * (dtype != torch.float64))
    assert error(first[1], wanted_grad) <= ROUNDING[dtype] + 2e-6 * (dtype != torch.float64)
