"""The kernels for shards in every form; test_merged_shards.py has them as their sizes choose."""

import pytest
import torch

from anl_kernels.backends.triton import launch
from anl_kernels.distributed.sharded_kernels import merge_partials
from anl_kernels.interface import AUX, NUM_PARTIALS, RowRequest
from tests.cases import CASES, KINDS, over
from tests.helpers import error, random_rows
from tests.shards import (
    IGNORE,
    OF_ROWS,
    SPLITS,
    assert_ignored_not_read,
    assert_merged,
    assert_nan_makes_nan,
    assert_partials,
    logits_of,
    run_shards,
)
from tests.triton.forms import FORMS, forced, spied_kernels

pytestmark = pytest.mark.usefixtures("triton_backend")
REQUEST = RowRequest.of(CASES["ANL-CE"], IGNORE, *OF_ROWS)


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """The form of every launch; (name, names of the kernels launched)."""
    with forced(request.param, monkeypatch) as launched:
        yield request.param, launched


@pytest.mark.parametrize("layout", ["rows", "class-first"])
@over(KINDS)
def test_terms(terms, layout, form, device, poisoned):
    logits, target = logits_of(torch.float64, layout, device)
    assert_merged("triton", logits, target, terms, SPLITS["uneven"], 1e-12)


def test_aux(form, device, poisoned):
    logits, target = logits_of(torch.float32, "rows", device)
    assert_merged("triton", logits, target, CASES["ANL-CE"], SPLITS["even"], 2e-6, aux=True)
    assert ("split_merge_kernel" in form[1]) == (form[0] == "split")


def test_partials(form, device, poisoned):
    """Each column of what a form leaves, the label, classes that are missing and ties."""
    logits = torch.randint(-3, 4, (5, 40), device=device).double()
    logits[:, 8:26] = -torch.inf
    logits[3] = -torch.inf
    logits[3, 7] = 1.0
    target = torch.tensor([3, -1, IGNORE, 7, 39], device=device)
    made = launch.shard_partials(logits, target, REQUEST.asking(*OF_ROWS, *AUX))
    assert_partials(made, logits, target, 1e-12)


def test_ignored_rows_are_not_read(form, device, poisoned):
    assert_ignored_not_read(launch, device)


def test_nan_logits_make_nan(form, device):
    assert_nan_makes_nan(launch, device)


@pytest.mark.parametrize("masked", [[20], [0, 10, 20, 30], range(10, 40), range(40)])
@pytest.mark.parametrize("low", [-1e6, -1e9, "lowest"])
def test_an_anchor_may_be_masked(low, masked, form, device):
    """A shard without the label, some of whose classes are padding with a finite logit."""
    logits = torch.randn(2, 40, device=device)
    logits[:, list(masked)] = torch.finfo(logits.dtype).min if low == "lowest" else low
    columns, _ = launch.shard_partials(logits, logits.new_full((2,), -1).long(), REQUEST)
    exact = logits.double()
    m = exact.amax(1)
    total = (exact - m[:, None]).sum(1).float()  # infinite where float32 is not enough
    torch.testing.assert_close(columns[:, 0].double(), m)
    torch.testing.assert_close(columns[:, 2], total, rtol=1e-5, atol=1e-5)
    merged = merge_partials(torch.stack([columns, columns]))
    assert not merged.isnan().any()


def test_an_offset_of_all_logits_cancels(form, device):
    logits = torch.randint(-8, 9, (2, 40), device=device) / 4
    target = torch.full((2,), -1, device=device)
    plain, _ = launch.shard_partials(logits, target, REQUEST)
    moved, _ = launch.shard_partials(logits + 2.0**20, target, REQUEST)
    torch.testing.assert_close(moved[:, 1:4], plain[:, 1:4])


def test_same_bits_twice(form, device):
    logits, target = random_rows(3, 60, torch.float32, device)
    scale = torch.ones((), device=device)
    first, second = (
        run_shards(launch, logits, target, REQUEST, SPLITS["uneven"], scale) for _ in range(2)
    )
    assert torch.equal(first[0].row_losses, second[0].row_losses)
    assert torch.equal(first[1], second[1])


def test_a_few_long_rows_are_split_as_planned(device, monkeypatch):
    logits, target = random_rows(1, (1 << 17) + 3, torch.float32, device)
    whole = launch.row_loss(logits, target, torch.ones((), device=device), None, REQUEST)
    launched = spied_kernels(monkeypatch)
    columns, best = launch.shard_partials(logits, target, REQUEST.asking(*OF_ROWS, *AUX))
    sums = launch.shard_sums(logits, target, columns, REQUEST)
    outputs = launch.shard_finish(columns, sums, target, None, REQUEST)
    assert launched == [
        "split_partials_kernel", "split_merge_kernel", "split_sums_kernel", "split_finish_kernel"
    ]  # fmt: skip
    assert error(outputs.row_losses, whole.row_losses) <= 1e-6
    assert error(outputs.saved, whole.saved) <= 2e-6
    assert columns.shape == (1, NUM_PARTIALS)
    logits[0, target[0]] = -torch.inf
    assert best.item() == logits.argmax().item()


def test_terms_without_a_dense_sum_launch_none(device, monkeypatch):
    logits, target = random_rows(3, 37, torch.float32, device)
    request = RowRequest.of(CASES["NCE"], IGNORE, *OF_ROWS)
    columns, _ = launch.shard_partials(logits, target, request)
    launched = spied_kernels(monkeypatch)
    assert launch.shard_sums(logits, target, columns, request).shape == (3, 0)
    assert launched == []
