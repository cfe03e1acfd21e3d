"""The kernels that work on some of a row's classes, in every form that their rows may take."""

import pytest
import torch

import anl_kernels as ak
from anl_kernels.backends.choice import extension, load_backend
from anl_kernels.interface import AUX, RowRequest
from tests.cases import CASES, KINDS, over
from tests.cuda.forms import SHARD_FORMS, forced_of_shards
from tests.helpers import random_rows
from tests.shards import IGNORE, SPLITS, assert_merged, assert_partials, local, logits_of

pytestmark = pytest.mark.usefixtures("cuda_backend")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
in_every_form = pytest.mark.parametrize("form", SHARD_FORMS)


def launch_of(*shape, dtype=torch.bfloat16):
    logits = torch.empty(shape, dtype=dtype, device=extension("cuda").device_type)
    launch = extension("cuda").shard_launch(logits)
    return launch["kind"], launch["cluster"], launch["threads"]


def slack(dtype):
    return 1e-12 if dtype == torch.float64 else 2e-6


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((4096, 128), ("elements", 1, 128)),
        ((2, 16000, 64, 64), ("elements", 1, 128)),
        ((4096, 129), ("stream", 1, 32)),
        ((4096, 16000), ("stream", 1, 256)),
        ((4096, 1 << 20), ("stream", 1, 256)),
        ((8, 16000), ("stream", 1, 256)),
        ((8, 1 << 15), ("stream", 2, 256)),
        ((8, 1 << 20), ("stream", 16, 256)),
        ((200, 1 << 20), ("stream", 4, 256)),
    ],
)
def test_launches_by_size(shape, wanted):
    if torch.cuda.is_available():
        pytest.skip("the figures are the emulated H200's")
    assert launch_of(*shape) == wanted


@in_every_form
@pytest.mark.parametrize("dtype", DTYPES)
@over(KINDS)
def test_forms(terms, dtype, form, device, poisoned):
    """Shards that start anywhere, the first of a single class."""
    logits, target = logits_of(dtype, "rows", device)
    with forced_of_shards(form):
        if form in ("cluster", "cluster-of-16") and not torch.cuda.is_available():
            assert launch_of(7, 43, dtype=dtype)[1] > 1
        assert_merged("cuda", logits, target, terms, SPLITS["uneven"], slack(dtype), aux=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_classes", [129, 2047, 5000, 40_000])
def test_sizes(num_classes, dtype, device, poisoned):
    """Threads that sweep no vectors, one, or many."""
    logits, target = random_rows(3, num_classes, dtype, device)
    splits = (0, num_classes // 3, num_classes)
    assert_merged("cuda", logits, target, CASES["ANL-FL"], splits, slack(dtype))


@in_every_form
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_columns(dtype, form, device, poisoned):
    logits, target = logits_of(dtype, "rows", device)
    logits[3] = -torch.inf
    logits[5] += 1e6
    label = local(target, 2, 60).int()
    request = RowRequest.of(CASES["CE"], IGNORE, *AUX)
    with forced_of_shards(form):
        made = load_backend("cuda").shard_partials(logits[:, 2:], label, request)
    assert_partials(made, logits[:, 2:], label, slack(dtype))


@in_every_form
def test_the_first_of_the_best(form, device, poisoned):
    logits = torch.zeros(2, 300, device=device, dtype=torch.bfloat16)
    logits[0, [130, 131, 290]] = 1.0
    logits[1] = -torch.inf
    target = torch.tensor([130, -1], device=device)
    with forced_of_shards(form):
        _, best = load_backend("cuda").shard_partials(
            logits, target, RowRequest.of(CASES["CE"], IGNORE, *AUX)
        )
    assert best.tolist() == [131, 0]


def test_the_most_terms(device):
    logits, target = logits_of(torch.float64, "rows", device)
    many = [ak.NNCE(min_prob=1e-3 / (i + 1)) for i in range(extension("cuda").max_terms)]
    terms = ak.terms.as_terms(sum(many[1:], 1.0 * many[0]))
    assert_merged("cuda", logits, target, terms, SPLITS["even"], 1e-12, aux=True)
    request = RowRequest.of(terms + ak.CE(), IGNORE)
    partials = torch.zeros(7, 5, dtype=torch.float64, device=device)
    with pytest.raises(RuntimeError, match="up to 32, got 33"):
        load_backend("cuda").shard_sums(logits, target, partials, request)


@pytest.mark.parametrize("num_rows", [1, 31, 32, 33, 129])
def test_numbers_of_rows(num_rows, device, poisoned):
    logits, target = random_rows(num_rows, 30, torch.float32, device)
    assert_merged("cuda", logits, target, CASES["ANL-CE"], (0, 11, 30), 2e-6)
