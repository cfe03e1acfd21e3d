"""Truncated GCE against its formula, and the refresh of its weights."""

import copy
import math

import pytest
import torch
from torch import nn

import anl_kernels as ak
from anl_kernels import recipes
from tests.helpers import leaf, random_rows
from tests.recipes.training import NUM_CLASSES, NUM_SAMPLES, network, noisy_blobs, train

OPTIONS = {
    "mean": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "ignored": {"ignore_index": 2},
    "weight": {"weight": torch.arange(1.0, 8.0), "ignore_index": 2},
}


def formula(logits, target, kept, q, k, weight=None, ignore_index=-100, reduction="mean"):
    """As the paper has it: w_i times GCE less GCE at k."""
    counted = target != ignore_index
    safe = target.clamp(0)
    p_y = logits.softmax(1).gather(1, safe.unsqueeze(1)).squeeze(1)
    losses = kept * ((1 - p_y**q) / q - (1 - k**q) / q)
    factor = counted * (1.0 if weight is None else weight[safe])
    if reduction == "none":
        return losses * factor
    return (losses * factor).sum() / (factor.sum() if reduction == "mean" else 1)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients(dtype, options, backend, device):
    logits, target = random_rows(9, 7, dtype, device, scale=2.0)
    target[0] = options.get("ignore_index", -100)
    index = torch.randperm(12, device=device)[:9]
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    criterion = recipes.TruncatedGCE(12, q=0.6, k=0.3, **moved).to(device)
    criterion.sample_weight[index[::2]] = 0
    ours, exact = leaf(logits), leaf(logits.double())
    loss = criterion(ours, target, index)
    wanted = formula(exact, target, criterion.sample_weight[index], 0.6, 0.3, **moved)
    torch.testing.assert_close(loss, wanted.to(loss.dtype))
    loss.sum().backward()
    wanted.sum().backward()
    torch.testing.assert_close(ours.grad, exact.grad.to(dtype))
    assert not ours.grad[::2].any()


def test_segmentation(device):
    logits, target = torch.randn(2, 7, 3, device=device), torch.randint(7, (2, 3), device=device)
    index = torch.arange(6, device=device).view(2, 3)
    criterion = recipes.TruncatedGCE(6).to(device)
    criterion.refresh(logits, target, index)
    by_rows = recipes.TruncatedGCE(6).to(device)
    rows = logits.movedim(1, -1).flatten(0, 1)
    by_rows.refresh(rows, target.flatten(), index.flatten())
    assert torch.equal(criterion.sample_weight, by_rows.sample_weight)
    torch.testing.assert_close(
        criterion(logits, target, index), by_rows(rows, target.flatten(), index.flatten())
    )


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8])
def test_kept_is_what_costs_less_than_at_k(k, backend, device):
    """The paper keeps a sample while its loss is below the loss of a probability of k."""
    p_y = torch.tensor([k - 1e-3, k + 1e-3, 0.01, 0.99], device=device, dtype=torch.float64)
    logits = torch.stack([p_y, 1 - p_y], 1).log()
    criterion = recipes.TruncatedGCE(6, k=k).to(device)
    criterion.sample_weight[4] = 0  # not among those refreshed
    index = torch.tensor([5, 0, 2, 3], device=device)
    target = torch.zeros(4, dtype=torch.int64, device=device)
    criterion.refresh(logits, target, index)
    assert criterion.sample_weight[index].tolist() == [0, 1, 0, 1]
    assert criterion.sample_weight[[1, 4]].tolist() == [1, 0]
    losses = ak.robust_loss(logits, target, ak.GCE(), reduction="none")
    below = losses < (1 - k**0.7) / 0.7
    assert torch.equal(criterion.sample_weight[index].bool(), below)


def test_refresh_from_a_model(device):
    x, y, _ = (tensor.to(device) for tensor in noisy_blobs())
    model = network().to(device)
    model[1].eval()  # a norm that is to keep its statistics
    modes = [module.training for module in model.modules()]
    partials = model[1].running_mean.clone()
    criterion = recipes.TruncatedGCE(NUM_SAMPLES, k=0.25).to(device)
    places = torch.randperm(NUM_SAMPLES)
    # From wherever a loader leaves them, whole numbers among them.
    loader = [(x[i].cpu(), y[i].cpu(), i) for i in places.split(60)]
    criterion.refresh_from(model, loader)
    model.eval()
    p_y = model(x).softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)
    assert torch.equal(criterion.sample_weight, (p_y > 0.25).float())
    assert 0 < criterion.sample_weight.mean() < 1
    model.train()
    model[1].eval()
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[1].running_mean, partials)
    assert all(p.grad is None for p in model.parameters())


def test_modes_are_restored_after_an_error():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout())
    criterion = recipes.TruncatedGCE(4)
    batch = torch.randn(1, 4), torch.zeros(1, dtype=torch.int64), torch.tensor([4])
    with pytest.raises(IndexError, match=r"index has 4, outside \[0, 4\)"):
        criterion.refresh_from(model, [batch])
    assert model.training
    assert model[1].training


def test_training_leaves_out_wrong_labels():
    """After a refresh most wrong labels are out, most right ones in, and the loss falls further."""
    x, y, true = noisy_blobs()
    model, criterion = network(), recipes.TruncatedGCE(NUM_SAMPLES)
    torch.manual_seed(0)
    before = train(model, criterion, x, y, 10)
    criterion.refresh_from(model, [(x, y, torch.arange(NUM_SAMPLES))])
    kept = criterion.sample_weight.bool()
    assert (kept & (y != true)).sum() <= 0.1 * (y != true).sum()
    assert (kept & (y == true)).sum() >= 0.9 * (y == true).sum()
    after = train(model, criterion, x, y, 10)
    assert before[-1] < before[0]
    assert after[-1] < after[0] < 0  # the constant: what counts is below the loss at k
    model.eval()
    assert (model(x).argmax(1) == true).float().mean() > 0.95


def test_state_and_copies():
    criterion = recipes.TruncatedGCE(5, weight=torch.ones(NUM_CLASSES))
    criterion.sample_weight[3] = 0
    assert set(criterion.state_dict()) == {"sample_weight", "weight"}
    other = recipes.TruncatedGCE(5, weight=torch.zeros(NUM_CLASSES))
    other.load_state_dict(criterion.state_dict())
    assert other.sample_weight.tolist() == [1, 1, 1, 0, 1]
    assert copy.deepcopy(criterion).sample_weight.tolist() == [1, 1, 1, 0, 1]
    assert "num_samples=5, k=0.5" in repr(criterion)
    assert not list(criterion.parameters())


def test_refused_arguments():
    for k in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"k must be in \(0, 1\)"):
            recipes.TruncatedGCE(5, k=k)
    for num_samples in (0, 2.0):
        with pytest.raises(ValueError, match="num_samples must be a positive int"):
            recipes.TruncatedGCE(num_samples)
    with pytest.raises(ValueError, match="return_aux must be False, got True"):
        recipes.TruncatedGCE(5, return_aux=True)
    with pytest.raises(TypeError, match="unknown option sample_weight"):
        recipes.TruncatedGCE(5, sample_weight=torch.ones(5))
    criterion = recipes.TruncatedGCE(5)
    logits, target = torch.randn(3, 4), torch.tensor([0, 1, 2])
    for index, kind, message in (
        (torch.tensor([0, 1, 5]), IndexError, r"index has 5, outside \[0, 5\)"),
        (torch.tensor([0, -1, 4]), IndexError, "index has -1"),
        (torch.tensor([0, 1]), ValueError, r"the target's shape \(3,\)"),
        (
            torch.tensor([0.0, 1, 2]),
            TypeError,
            r"index must be an int64 tensor, got torch\.float32",
        ),
        ([0, 1, 2], TypeError, "index must be an int64 tensor, got list"),
    ):
        for call in (criterion, criterion.refresh):
            with pytest.raises(kind, match=message):
                call(logits, target, index)


def test_ignored_samples_do_not_count_among_the_kept(device):
    criterion = recipes.TruncatedGCE(2).to(device)
    logits = torch.tensor([[9.0, 0.0], [9.0, 0.0]], device=device)
    target = torch.tensor([0, -100], device=device)
    criterion.refresh(logits, target, torch.arange(2, device=device))
    assert criterion.sample_weight.tolist() == [1, 0]
