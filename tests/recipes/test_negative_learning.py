"""Negative learning against its formula in plain PyTorch, stage by stage."""

import copy

import pytest
import torch
import torch.nn.functional as F

import anl_kernels as ak
from anl_kernels import recipes
from anl_kernels.recipes.negative_learning import _log_complement
from tests.helpers import error, leaf, random_rows
from tests.recipes.training import NUM_CLASSES, NUM_SAMPLES, network, noisy_blobs, train

K = 7
FREQUENCY = torch.tensor([4, 1, 0, 2, 8, 8, 1])


def drawn(criterion, target):
    """The classes that the criterion's next call draws."""
    state = criterion.generator.get_state()
    others = criterion._others(target, 1)
    criterion.generator.set_state(state)
    return others


def formula(logits, target, others, weight, kept):
    """As the official code has it: log of the clamped complements, by one-hot places."""
    complement = torch.log(torch.clamp(1 - logits.softmax(1), min=1e-5, max=1.0))
    of_others = complement.gather(1, others).sum(1) * weight[target.clamp(0)]
    return -(of_others * kept).sum() / kept.sum().clamp(min=1)


def positive(logits, target, weight, kept):
    target = target.masked_fill(~kept, -100)
    return F.cross_entropy(logits, target, weight.to(logits.dtype))


def criterion_of(device, **options):
    generator = torch.Generator().manual_seed(3)
    return recipes.NegativeLearning(K, 3, FREQUENCY, generator=generator, **options).to(device)


WEIGHT = torch.tensor([2.0, 8, 0, 4, 1, 1, 8])


@pytest.mark.parametrize("stage", ["nl", "selnl", "selpl"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients(dtype, stage, backend, device):
    logits, target = random_rows(40, K, dtype, device)
    target[5] = -100
    criterion = criterion_of(device, stage=stage)
    assert torch.equal(criterion.weight.cpu(), WEIGHT)
    ours, exact = leaf(logits), leaf(logits.double())
    p_y = exact.detach().softmax(1).gather(1, target.clamp(0).unsqueeze(1)).squeeze(1)
    kept = (target != -100) & (p_y >= {"nl": 0.0, "selnl": 1 / K, "selpl": 0.5}[stage])
    assert kept.any()
    others = drawn(criterion, target)
    if stage == "selpl":
        wanted = positive(exact, target, WEIGHT.to(device), kept)
    else:
        wanted = formula(exact, target, others, WEIGHT.to(device), kept)
    loss = criterion(ours, target)
    loss.backward()
    wanted.backward()
    assert error(loss.detach(), wanted.detach()) <= 1e-6
    assert error(ours.grad, exact.grad) <= (1e-9 if dtype == torch.float64 else 2e-6)
    assert not ours.grad[~kept].any()


@pytest.mark.parametrize("stage", ["nl", "selnl", "selpl"])
def test_pixels_are_rows(stage, device):
    logits = 3 * torch.randn(2, K, 3, 4, device=device)
    target = torch.randint(K, (2, 3, 4), device=device)
    target[0, 0] = 3
    ours, rows = leaf(logits), leaf(logits)
    criterion = recipes.NegativeLearning(K, 2, ignore_index=3, stage=stage).to(device)
    torch.manual_seed(0)
    others = criterion._others(target, 1)
    torch.manual_seed(0)
    loss = criterion(ours, target)
    z = rows.movedim(1, -1).flatten(0, 2)
    y, others = target.flatten(), others.movedim(1, -1).flatten(0, 2)
    p_y = z.detach().softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)
    kept = (y != 3) & (p_y >= {"nl": 0.0, "selnl": 1 / K, "selpl": 0.5}[stage])
    ones = torch.ones(K, device=device)
    wanted = positive(z, y, ones, kept) if stage == "selpl" else formula(z, y, others, ones, kept)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(loss, ours)[0], torch.autograd.grad(wanted, rows)[0]
    )


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_drawn_classes_are_the_others_equally_often(num_classes):
    generator = torch.Generator().manual_seed(0)
    criterion = recipes.NegativeLearning(num_classes, 400, generator=generator)
    target = torch.arange(num_classes)
    others = criterion._others(target, 1)
    counts = F.one_hot(others, num_classes).sum(1)
    assert not counts.diagonal().any()
    expected = 400 / (num_classes - 1)
    off = ~torch.eye(num_classes, dtype=torch.bool)
    assert ((counts[off] - expected).abs() <= 5 * expected**0.5).all()


def test_a_generator_gives_the_same_classes_again(device):
    logits, target = random_rows(10, K, torch.float32, device)
    first, second = criterion_of(device), criterion_of(device)
    losses = [first(logits, target) for _ in range(3)]
    assert torch.equal(torch.stack(losses), torch.stack([second(logits, target) for _ in range(3)]))
    assert len(set(map(float, losses))) == 3


def test_certain_negatives(backend, device):
    """Beside the clamp: the loss and its gradient, where 1 - p has few digits or none."""
    logits = torch.tensor([[11.0, 0, 0], [13.0, 0, 0], [-60.0, 0, 0]], device=device)
    target = torch.tensor([1, 1, 2], device=device)
    criterion = recipes.NegativeLearning(3, 64, generator=torch.Generator().manual_seed(0))
    others = drawn(criterion, target)
    ours, exact = leaf(logits), leaf(logits.double())
    loss = criterion(ours, target)
    wanted = formula(exact, target, others, torch.ones(3, device=device), torch.ones(3).bool())
    loss.backward()
    wanted.backward()
    assert error(loss.detach(), wanted.detach()) <= 1e-6
    assert error(ours.grad, exact.grad) <= 1e-5


def test_log_complement():
    log_p = torch.tensor([0.0, -1e-30, -1e-7, -0.01, -0.6931, -0.6932, -3.0, -40.0, -90.0])
    ours, exact = leaf(log_p), log_p.double()
    value = _log_complement(ours, 1e-5)
    wanted = torch.where(
        exact > -0.5, (-torch.expm1(exact)).clamp(min=1e-5).log(), torch.log1p(-exact.exp())
    )
    slope = torch.where(exact > -1e-5, 0, 1 / torch.expm1(-exact))
    torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=0)
    value.sum().backward()
    torch.testing.assert_close(ours.grad.double(), -slope, rtol=1e-5, atol=1e-38)


def test_nothing_of_the_logits_size_is_kept(device):
    logits, target = random_rows(4, 1000, torch.float32, device)
    ours = leaf(logits)
    criterion = recipes.NegativeLearning(1000, 5).to(device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        criterion(ours, target)
    large = {t.data_ptr() for t in kept if t.numel() >= logits.numel()}
    assert large <= {ours.data_ptr()}


def test_confidence_is_the_mean_of_what_was_seen(device):
    """Of the last calls in training mode; before any, the probability at hand."""
    target = torch.tensor([0, 1], device=device)
    index = torch.tensor([3, 1], device=device)
    criterion = recipes.NegativeLearning(2, num_samples=5, history=2, stage="selpl").to(device)
    seen = []
    for p in (0.9, 0.4, 0.3, 0.8):
        logits = torch.tensor([[p, 1 - p], [0.6, 0.4]], device=device).log()
        criterion.eval()
        unread = criterion(logits, target, index)
        criterion.train()
        before = copy.deepcopy(criterion.remembered)
        loss = criterion(logits, target, index)
        assert loss == unread
        seen.append(p)
        first = sum(seen[:-1][-2:]) / len(seen[:-1][-2:]) if seen[:-1] else p
        kept = [p] if first >= 0.5 else []
        wanted = -torch.tensor(kept).log().mean() if kept else torch.tensor(0.0)
        torch.testing.assert_close(loss.cpu(), wanted)
        assert not criterion.remembered[[0, 2, 4]].any()
        assert not torch.equal(before, criterion.remembered)
    assert criterion.seen.tolist() == [0, 4, 0, 4, 0]
    torch.testing.assert_close(criterion.remembered[3].cpu(), torch.tensor([0.3, 0.8]))


def test_no_row_counts(device):
    logits, target = random_rows(3, K, torch.float32, device)
    for stage, y in (("nl", target * 0 - 100), ("selpl", logits.argmin(1))):
        ours = leaf(logits)
        criterion = recipes.NegativeLearning(K, stage=stage, threshold=0.9).to(device)
        loss = criterion(ours, y)
        loss.backward()
        assert loss == 0
        assert not ours.grad.any()


def test_each_stage_lowers_its_loss():
    """The published order of stages; what is learned is the truth, not the labels."""
    x, y, true = noisy_blobs()
    criterion = recipes.NegativeLearning(
        NUM_CLASSES,
        2,
        torch.bincount(y),
        num_samples=NUM_SAMPLES,
        generator=torch.Generator().manual_seed(0),
    )
    model = network()
    accuracy = []
    for stage in ("nl", "selnl", "selpl"):
        criterion.stage = stage
        losses = train(model, criterion, x, y, 12, lr=0.05)
        assert sum(losses[-3:]) < sum(losses[:3]), (stage, losses)
        model.eval()
        accuracy.append((model(x).argmax(1) == true).float().mean())
        model.train()
    assert min(accuracy) > 0.9
    assert (y == true).float().mean() < 0.7


def test_state_and_copies():
    criterion = recipes.NegativeLearning(K, 2, FREQUENCY, num_samples=4)
    logits, target = random_rows(4, K)
    criterion(logits, target, torch.arange(4))
    criterion.stage = "selpl"
    other = recipes.NegativeLearning(K, 2, torch.ones(K), num_samples=4)
    other.load_state_dict(criterion.state_dict())
    assert other.stage == "selpl"
    assert torch.equal(other.remembered, criterion.remembered)
    assert torch.equal(other.seen, torch.ones(4, dtype=torch.int64))
    assert torch.equal(other.weight, WEIGHT)
    assert copy.deepcopy(criterion).stage == "selpl"
    assert "num_negatives=2" in repr(criterion)
    assert "stage='selpl'" in repr(criterion)
    assert set(recipes.NegativeLearning(K).state_dict()) == {"_extra_state"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be an int of at least 2, got 1"),
        ({"num_negatives": 0}, "num_negatives must be an int of at least 1, got 0"),
        ({"history": 0}, "history must be"),
        ({"num_samples": -1}, "num_samples must be a positive int"),
        ({"threshold": 1.0}, r"threshold must be in \(0, 1\)"),
        ({"floor": 0.0}, r"floor must be in \(0, 1\)"),
        ({"stage": "pl"}, "stage must be one of nl, selnl, selpl, got 'pl'"),
        ({"class_frequency": torch.ones(3)}, r"shape \(7,\), .*got \(3,\)"),
        ({"class_frequency": [1] * 7}, "got list"),
        ({"class_frequency": torch.zeros(7)}, "nor 0 everywhere"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        recipes.NegativeLearning(**({"num_classes": K} | options))


def test_refused_calls():
    logits, target = random_rows(3, K)
    with pytest.raises(ValueError, match="num_classes = 5 classes, got 7"):
        recipes.NegativeLearning(5)(logits, target)
    with pytest.raises(ValueError, match="index must be given"):
        recipes.NegativeLearning(K)(logits, target, torch.arange(3))
    with pytest.raises(ValueError, match="index must be given"):
        recipes.NegativeLearning(K, num_samples=9)(logits, target)
    with pytest.raises(IndexError, match="index has 9"):
        recipes.NegativeLearning(K, num_samples=9)(logits, target, torch.arange(7, 10))
    with pytest.raises(IndexError, match=r"target\[0\] is 7"):
        recipes.NegativeLearning(K)(logits, torch.tensor([7, 0, 0]))
    with pytest.raises(ValueError, match=r"target must have shape \(3,\)"):
        recipes.NegativeLearning(K)(logits, torch.tensor([0, 0]))
    criterion = recipes.NegativeLearning(K)
    with pytest.raises(ValueError, match="stage must be one of"):
        criterion.stage = "sel"


def test_with_a_linear_head(device):
    """A gradient through a model reaches all of its parameters."""
    model = torch.nn.Linear(4, K).to(device)
    criterion = recipes.NegativeLearning(K, K - 1).to(device)
    target = torch.randint(K, (6,), device=device)
    loss = criterion(model(torch.randn(6, 4, device=device)), target)
    loss = loss + 1e-3 * ak.l1_penalty(model.parameters())
    loss.backward()
    assert all(p.grad.any() for p in model.parameters())


def test_ignored_rows_are_not_remembered(device):
    criterion = recipes.NegativeLearning(4, num_samples=2).to(device)
    logits = torch.tensor([[-9.0, 0, 0, 0], [9.0, 0, 0, 0]], device=device)
    index, zero = torch.tensor([0, 1], device=device), torch.tensor([0, 0], device=device)
    for _ in range(3):
        criterion(logits, torch.tensor([-100, 0], device=device), index)
    assert criterion.seen.tolist() == [0, 3]
    assert criterion.remembered[0].eq(0).all()
    criterion.stage = "selpl"
    confident = criterion(logits[1:], zero[1:], index[1:])
    torch.testing.assert_close(criterion(logits, zero, index), confident)
