"""Shards in every form of the kernels; tests/test_shards.py has them as their sizes choose."""

import pytest
import torch

from anl_kernels.backends.triton import launch
from anl_kernels.distributed.merge import merge_partials
from anl_kernels.interface import NUM_PARTIALS, RowRequest
from tests.cases import CASES, KINDS, over
from tests.helpers import error, random_rows
from tests.test_shards import IGNORE, SPLITS, assert_merged, logits_of, run_shards
from tests.triton.forms import FORMS, forced, spied_kernels

pytestmark = pytest.mark.usefixtures("triton_backend")
REQUEST = RowRequest(CASES["ANL-CE"], IGNORE, write_saved=True)


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
    columns, best = launch.shard_partials(logits, target, REQUEST._replace(aux=True))
    others = logits.clone()
    labelled = [0, 3, 4]
    others[labelled, target[labelled]] = -torch.inf
    m = others.amax(1)
    z = (others - m[:, None])[m > -torch.inf]
    there = z > -torch.inf
    wanted = torch.tensor([-torch.inf, 0, 0, 0, -torch.inf], dtype=m.dtype, device=device)
    wanted = wanted.repeat(5, 1)
    sums = [z.exp().sum(1), z.masked_fill(~there, 0).sum(1), there.sum(1).double()]
    wanted[m > -torch.inf, :4] = torch.stack([m[m > -torch.inf], *sums], 1)
    wanted[labelled, 4] = logits[labelled, target[labelled]]
    torch.testing.assert_close(columns, wanted)
    assert best.tolist() == others.argmax(1).tolist()


def test_ignored_rows_are_not_read(form, device, poisoned):
    logits, target = random_rows(4, 40, torch.float32, device)
    logits[1], target[1] = torch.nan, IGNORE
    columns, best = launch.shard_partials(logits, target, REQUEST)
    assert best.numel() == 0
    assert columns[1].tolist() == [-torch.inf, 0.0, 0.0, 0.0, -torch.inf]
    sums = launch.shard_sums(logits, target, columns, REQUEST)
    assert not sums[1].any()
    outputs = launch.shard_finish(columns, sums, target, None, REQUEST)
    assert outputs.row_losses[1] == 0
    assert outputs.row_losses.isfinite().all()


def test_nan_logits_make_nan(form, device):
    logits, target = random_rows(3, 60, torch.float32, device)
    logits[1, 40] = torch.nan
    scale = torch.ones((), device=device)
    outputs, grad, _ = run_shards(launch, logits, target, REQUEST, SPLITS["even"], scale)
    assert outputs.row_losses.isnan().tolist() == [False, True, False]
    assert grad.isnan().all(1).tolist() == [False, True, False]


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
    columns, best = launch.shard_partials(logits, target, REQUEST._replace(aux=True))
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
    request = REQUEST._replace(terms=CASES["NCE"])
    columns, _ = launch.shard_partials(logits, target, request)
    launched = spied_kernels(monkeypatch)
    assert launch.shard_sums(logits, target, columns, request).shape == (3, 0)
    assert launched == []
