"""The kernels that work on some of a row's classes; their results, merged, are the row's."""

from itertools import pairwise

import pytest
import torch

from anl_kernels.backends.selection import load_backend
from anl_kernels.distributed.merge import merge_partials
from anl_kernels.interface import RowRequest, accumulator_dtype
from tests.cases import CASES, KINDS, over
from tests.helpers import error

SPLITS = {
    "even": (0, 20, 40, 60),
    "uneven": (0, 1, 44, 60),
    "one": (0, 60),
}
IGNORE = -100


def logits_of(dtype, layout, device):
    """Logits with 60 classes, some absent, and labels, some ignored."""
    shape = {"rows": (7, 60), "class-first": (2, 60, 5), "channels-last": (2, 5, 60)}[layout]
    logits = 3 * torch.randn(shape, dtype=torch.float64, device=device)
    if layout == "channels-last":
        logits = logits.movedim(-1, 1)
    logits[:, [3, 59]] = -torch.inf
    target = torch.randint(4, 59, logits.shape[:1] + logits.shape[2:], device=device)
    target.view(-1)[[0, 2, 4]] = torch.tensor([0, IGNORE, 1], device=device)
    return logits.to(dtype), target


def local(target, first, last):
    """Labels as their places in a shard."""
    there = (target >= first) & (target < last)
    return torch.where(there, target - first, -1).masked_fill(target == IGNORE, IGNORE)


def run_shards(kernels, logits, target, request, splits, row_scale):
    """(row_loss's outputs, the gradient, the argmax's candidates) out of shards."""
    bounds = list(pairwise(splits))
    shards = [(logits[:, a:b], local(target, a, b)) for a, b in bounds]
    made = [kernels.shard_partials(z, y, request) for z, y in shards]
    partials = merge_partials(torch.stack([columns for columns, _ in made]))
    sums = sum(kernels.shard_sums(z, y, partials, request) for z, y in shards)
    outputs = kernels.shard_finish(partials, sums, target, None, request)
    grad = torch.full_like(logits, torch.nan)
    for (z, y), (a, b) in zip(shards, bounds, strict=True):
        kernels.row_grad(grad[:, a:b], z, y, row_scale, outputs.saved, request)
    return outputs, grad, [best for _, best in made]


def assert_merged(kernels, logits, target, terms, splits, tolerance, **asked):
    kernels = load_backend(kernels)
    request = RowRequest(terms, IGNORE, write_saved=True, **asked)
    acc = accumulator_dtype(logits.dtype)
    row_scale = torch.rand(target.shape, dtype=acc, device=logits.device)
    whole = kernels.row_loss(logits, target, row_scale, None, request)
    wanted = torch.empty_like(logits)
    kernels.row_grad(wanted, logits, target, row_scale, whole.saved, request)
    parts, grad, _ = run_shards(kernels, logits, target, request, splits, row_scale)
    for name in ("row_losses", "lse", "p_y", "term_losses") if asked else ("row_losses",):
        assert error(getattr(parts, name), getattr(whole, name)) <= tolerance, name
    rounding = {torch.bfloat16: 4e-3, torch.float16: 5e-4}.get(logits.dtype, tolerance)
    assert error(grad, wanted) <= rounding
    assert not grad.movedim(1, -1)[target == IGNORE].any()


@pytest.mark.parametrize("splits", SPLITS.values(), ids=SPLITS)
@over()
def test_terms(terms, splits, kernels, device, poisoned):
    logits, target = logits_of(torch.float64, "rows", device)
    assert_merged(kernels, logits, target, terms, splits, 1e-12)


@pytest.mark.parametrize("layout", ["rows", "class-first", "channels-last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@over(KINDS)
def test_dtypes_and_layouts(terms, dtype, layout, kernels, device, poisoned):
    logits, target = logits_of(dtype, layout, device)
    assert_merged(kernels, logits, target, terms, SPLITS["uneven"], 2e-6)


@over(("ANL-CE", "all"))
def test_aux(terms, kernels, device, poisoned):
    logits, target = logits_of(torch.float32, "rows", device)
    assert_merged(kernels, logits, target, terms, SPLITS["even"], 2e-6, aux=True)


def test_the_best_of_the_others(kernels, device, poisoned):
    logits = torch.zeros(3, 8, device=device)
    logits[0, [2, 5]] = 1.0
    logits[1, 7] = 1.0
    logits[2] = -torch.inf
    logits[2, 4] = 0.0
    target = torch.tensor([2, -1, IGNORE], device=device)
    request = RowRequest(CASES["ANL-CE"], IGNORE, aux=True)
    columns, best = load_backend(kernels).shard_partials(logits, target, request)
    assert best.tolist() == [5, 7, 4]
    assert columns[:, 0].tolist() == [1.0, 1.0, 0.0]
    assert columns[:, 3].tolist() == [7.0, 8.0, 1.0]
    assert columns[:, 4].tolist() == [1.0, -torch.inf, -torch.inf]


def test_ignored_rows_are_not_read(kernels, device, poisoned):
    logits = torch.full((2, 9), torch.nan, device=device)
    target = torch.full((2,), IGNORE, device=device)
    request = RowRequest(CASES["ANL-CE"], IGNORE, write_saved=True)
    kernels = load_backend(kernels)
    columns, _ = kernels.shard_partials(logits, target, request)
    assert columns.tolist() == [[-torch.inf, 0.0, 0.0, 0.0, -torch.inf]] * 2
    sums = kernels.shard_sums(logits, target, columns, request)
    assert not sums.any()
    assert not kernels.shard_finish(columns, sums, target, None, request).row_losses.any()


def test_nan_logits_make_nan(kernels, device):
    logits, target = torch.randn(3, 60, device=device), torch.tensor([0, 30, 59], device=device)
    logits[1, 40] = torch.nan
    request = RowRequest(CASES["ANL-CE"], IGNORE, write_saved=True)
    scale = torch.ones((), device=device)
    splits = SPLITS["even"]
    outputs, grad, _ = run_shards(load_backend(kernels), logits, target, request, splits, scale)
    assert outputs.row_losses.isnan().tolist() == [False, True, False]
    assert grad.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("label", [-1, 60, 10**6])
def test_a_label_that_is_nowhere_makes_nan_in_its_row(label, kernels, device):
    """Who merges sets its logit to NaN; no kernel reads outside of the shard."""
    logits, target = torch.randn(3, 60, device=device), torch.tensor([0, label, 59], device=device)
    request = RowRequest(CASES["ANL-CE"], IGNORE, write_saved=True)
    kernels = load_backend(kernels)
    columns, _ = kernels.shard_partials(logits, target, request)
    assert columns[1, 4] == -torch.inf
    columns[1, 4] = torch.nan
    sums = kernels.shard_sums(logits, target, columns, request)
    outputs = kernels.shard_finish(columns, sums, target, None, request)
    assert outputs.row_losses.isnan().tolist() == [False, True, False]


def test_no_rows(kernels, device):
    request = RowRequest(CASES["ANL-CE"], IGNORE, write_saved=True, aux=True)
    kernels = load_backend(kernels)
    logits, target = torch.empty(0, 9, device=device), torch.empty(0, device=device).long()
    columns, best = kernels.shard_partials(logits, target, request)
    sums = kernels.shard_sums(logits, target, columns, request)
    outputs = kernels.shard_finish(columns, sums, target, None, request)
    assert columns.shape == (0, 5)
    assert best.shape == (0,)
    assert sums.shape == (0, 2)
    assert outputs.row_losses.shape == (0,)
