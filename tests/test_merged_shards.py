"""The kernels that work on some of a row's classes; their results, merged, are the row's."""

import pytest
import torch

from anl_kernels.backends.choice import load_backend
from anl_kernels.interface import AUX, RowRequest
from tests.cases import CASES, KINDS, over
from tests.shards import (
    IGNORE,
    OF_ROWS,
    SPLITS,
    assert_ignored_not_read,
    assert_merged,
    assert_nan_makes_nan,
    finishing,
    logits_of,
)


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
    request = RowRequest.of(CASES["ANL-CE"], IGNORE, *AUX)
    columns, best = load_backend(kernels).shard_partials(logits, target, request)
    assert best.tolist() == [5, 7, 4]
    assert columns[:, 0].tolist() == [1.0, 1.0, 0.0]
    assert columns[:, 3].tolist() == [7.0, 8.0, 1.0]
    assert columns[:, 4].tolist() == [1.0, -torch.inf, -torch.inf]


def test_ignored_rows_are_not_read(kernels, device, poisoned):
    assert_ignored_not_read(load_backend(kernels), device)


def test_nan_logits_make_nan(kernels, device):
    assert_nan_makes_nan(load_backend(kernels), device)


@pytest.mark.parametrize("label", [-1, 60, 10**6])
def test_a_label_that_is_nowhere_makes_nan_in_its_row(label, kernels, device):
    """Who merges sets its logit to NaN; no kernel reads outside of the shard."""
    logits, target = torch.randn(3, 60, device=device), torch.tensor([0, label, 59], device=device)
    request = RowRequest.of(CASES["ANL-CE"], IGNORE, *OF_ROWS)
    kernels = load_backend(kernels)
    columns, _ = kernels.shard_partials(logits, target, request)
    assert columns[1, 4] == -torch.inf
    columns[1, 4] = torch.nan
    sums = kernels.shard_sums(logits, target, columns, request)
    outputs = kernels.shard_finish(columns, sums, target, None, request)
    assert outputs.row_losses.isnan().tolist() == [False, True, False]


def test_no_rows(kernels, device):
    request = RowRequest.of(CASES["ANL-CE"], IGNORE, *OF_ROWS, *AUX)
    kernels = load_backend(kernels)
    logits, target = torch.empty(0, 9, device=device), torch.empty(0, device=device).long()
    columns, best = kernels.shard_partials(logits, target, request)
    sums = kernels.shard_sums(logits, target, columns, request)
    outputs = kernels.shard_finish(columns, sums, target, None, finishing(request))
    assert columns.shape == (0, 5)
    assert best.shape == (0,)
    assert sums.shape == (0, 2)
    assert outputs.row_losses.shape == (0,)
