"""Shards, some of the classes of every row, and what kernels make of them, merged."""

from itertools import pairwise

import torch

from anl_kernels.backends.choice import load_backend
from anl_kernels.distributed.sharded_kernels import merge_partials
from anl_kernels.interface import AUX, RowRequest, accumulator_dtype
from tests.cases import CASES
from tests.helpers import error, random_rows, rows

SPLITS = {
    "even": (0, 20, 40, 60),
    "uneven": (0, 1, 44, 60),
    "one": (0, 60),
}
IGNORE = -100
OF_ROWS = ("row_losses", "saved")


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


def finishing(request):
    """The same without the argmax, which is merged of places."""
    return request.asking(*(name for name in request.names if name != "argmax"))


def run_shards(kernels, logits, target, request, splits, row_scale):
    """(row_loss's outputs, the gradient, the argmax's candidates) out of shards."""
    bounds = list(pairwise(splits))
    shards = [(logits[:, a:b], local(target, a, b)) for a, b in bounds]
    made = [kernels.shard_partials(z, y, request) for z, y in shards]
    partials = merge_partials(torch.stack([columns for columns, _ in made]))
    sums = sum(kernels.shard_sums(z, y, partials, request) for z, y in shards)
    outputs = kernels.shard_finish(partials, sums, target, None, finishing(request))
    grad = torch.full_like(logits, torch.nan)
    for (z, y), (a, b) in zip(shards, bounds, strict=True):
        kernels.row_grad_into(grad[:, a:b], z, y, row_scale, outputs.saved, request)
    return outputs, grad, [best for _, best in made]


def assert_merged(kernels, logits, target, terms, splits, tolerance, aux=False):
    """Results out of shards are those of whole rows."""
    kernels = load_backend(kernels)
    request = RowRequest.of(terms, IGNORE, *OF_ROWS, *(AUX if aux else ()))
    acc = accumulator_dtype(logits.dtype)
    row_scale = torch.rand(target.shape, dtype=acc, device=logits.device)
    whole = kernels.row_loss(logits, target, row_scale, None, request)
    wanted = torch.empty_like(logits)
    kernels.row_grad_into(wanted, logits, target, row_scale, whole.saved, request)
    parts, grad, _ = run_shards(kernels, logits, target, request, splits, row_scale)
    for name in ("row_losses", "lse", "p_y", "term_losses") if aux else ("row_losses",):
        assert error(getattr(parts, name), getattr(whole, name)) <= tolerance, name
    rounding = {torch.bfloat16: 4e-3, torch.float16: 5e-4}.get(logits.dtype, tolerance)
    assert error(grad, wanted) <= rounding
    assert not grad.movedim(1, -1)[target == IGNORE].any()


def assert_partials(made, logits, target, tolerance):
    """Partials, and the best of the others, are those of the definition in float64."""
    columns, best = made
    z = rows(logits).double().reshape(-1, logits.shape[1])
    is_label = torch.arange(z.shape[1], device=z.device) == target.reshape(-1, 1)
    others = z.masked_fill(is_label, -torch.inf)
    m, z_y = others.amax(1), z.masked_fill(~is_label, -torch.inf).amax(1)
    absent = others == -torch.inf
    below = (others - m[:, None]).masked_fill(absent, -torch.inf)
    assert columns.dtype == accumulator_dtype(logits.dtype)
    exact = torch.stack([m, (~absent).sum(1), z_y], 1)
    assert torch.equal(columns[:, [0, 3, 4]].double(), exact)
    assert error(columns[:, 1], below.exp().sum(1)) <= tolerance
    assert error(columns[:, 2], below.masked_fill(absent, 0).sum(1)) <= tolerance
    assert torch.equal(best, others.argmax(1))


def assert_ignored_not_read(kernels, device):
    """Nothing is made of a row that is ignored, whatever is in it."""
    logits, target = random_rows(4, 40, torch.float32, device)
    logits[1], target[1] = torch.nan, IGNORE
    request = RowRequest.of(CASES["ANL-CE"], IGNORE, *OF_ROWS)
    columns, best = kernels.shard_partials(logits, target, request)
    assert best.numel() == 0
    assert columns[1].tolist() == [-torch.inf, 0.0, 0.0, 0.0, -torch.inf]
    sums = kernels.shard_sums(logits, target, columns, request)
    assert not sums[1].any()
    outputs = kernels.shard_finish(columns, sums, target, None, request)
    assert outputs.row_losses[1] == 0
    assert outputs.row_losses.isfinite().all()


def assert_nan_makes_nan(kernels, device):
    """A logit of NaN makes its row NaN, and no other."""
    logits, target = random_rows(3, 60, torch.float32, device)
    logits[1, 40] = torch.nan
    request = RowRequest.of(CASES["ANL-CE"], IGNORE, *OF_ROWS)
    scale = torch.ones((), device=device)
    outputs, grad, _ = run_shards(kernels, logits, target, request, SPLITS["even"], scale)
    assert outputs.row_losses.isnan().tolist() == [False, True, False]
    assert grad.isnan().all(1).tolist() == [False, True, False]
