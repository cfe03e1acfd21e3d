"""Instance-dependent noise."""

import numpy as np
import pytest
import torch

from anl_kernels import noise
from anl_kernels.noise import instance

N, K, D = 20_000, 7, 5


@pytest.fixture(scope="module")
def samples():
    rng = torch.Generator().manual_seed(0)
    return torch.randn(N, D, generator=rng), torch.randint(K, (N,), generator=rng)


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6])
def test_the_share_that_changes_is_near_the_rate(samples, rate):
    noisy = noise.instance_dependent(*samples, rate, K)
    # Truncation moves the mean of the rates by less than 0.006 at 0.2; the rest is chance.
    assert noisy.rate == pytest.approx(rate, abs=0.006 + 5 * (rate * (1 - rate) / N) ** 0.5)
    assert (noisy.labels[noisy.changed] != samples[1][noisy.changed]).all()


@pytest.mark.parametrize(("rate", "mean"), [(0.1, 0.1288), (0.5, 0.5), (1.0, 0.9202)])
def test_rates_are_truncated_normal(rate, mean):
    """The means are mu + sigma (phi(a) - phi(b)) / (Phi(b) - Phi(a))."""
    rates = instance._truncated_normal(200_000, rate, torch.Generator().manual_seed(0))
    assert 0 <= rates.min() <= rates.max() <= 1
    assert rates.mean() == pytest.approx(mean, abs=5 * 0.1 / 200_000**0.5 + 5e-5)


def test_samples_alike_go_to_the_same_classes():
    """The class follows the scores x W_y: a frequency for each, which other labels do not share."""
    labels = torch.tensor([0, 1]).repeat(5000)
    x = torch.randn(1, D, generator=torch.Generator().manual_seed(2))
    noisy = noise.instance_dependent(x.expand(10_000, D), labels, 0.5, K, seed=4)
    seeds = torch.randint(2**62, (K,), generator=torch.Generator().manual_seed(4))
    for y in (0, 1):
        matrix = torch.randn(D, K, generator=torch.Generator().manual_seed(int(seeds[y])))
        scores = (x @ matrix)[0]
        scores[y] = -torch.inf
        got = noisy.labels[noisy.changed & (labels == y)]
        share = torch.bincount(got, minlength=K) / len(got)
        assert share.sub(scores.softmax(0)).abs().max() < 5 * 0.5 / len(got) ** 0.5


def test_parts_of_a_data_set_share_the_matrices():
    x = torch.full((2000, D), 30.0)  # scores so far apart that one class takes all
    labels = torch.arange(4).repeat(500)
    whole = noise.instance_dependent(x, labels, 0.5, 4, seed=1)
    part = noise.instance_dependent(x[:1000], labels[:1000], 0.5, 4, seed=1)
    for y in range(4):
        targets = [set(n.labels[n.changed & (n.clean == y)].tolist()) for n in (whole, part)]
        assert targets[0] == targets[1]
        assert len(targets[0]) == 1


def test_parts_of_a_data_set_change_at_their_own_places(samples):
    x, labels = samples
    plain, same, other, another = (
        noise.instance_dependent(x[rows], labels[rows], 0.4, K, part=part)
        for rows, part in (
            (slice(5000), 0),
            (slice(5000, 10_000), 0),
            (slice(5000), 1),
            (slice(5000), 2),
        )
    )
    assert torch.equal(plain.changed, same.changed)
    for one, two in ((plain, other), (plain, another), (other, another)):
        both = (one.changed & two.changed).float().mean().item()
        assert both == pytest.approx(one.rate * two.rate, abs=5 * 0.4 / 5000**0.5)
    again = noise.instance_dependent(x[:5000], labels[:5000], 0.4, K, part=1)
    assert torch.equal(again.labels, other.labels)


def test_parts_with_other_draws_share_the_matrices():
    x = torch.full((500, D), 30.0)
    y = torch.zeros(500, dtype=torch.int64)
    targets = {
        noise.instance_dependent(x, y, 0.5, K, seed=2, part=part).labels.max().item()
        for part in range(4)
    }
    assert len(targets) == 1


def test_features_as_large_as_they_may_be():
    x = torch.full((50, D), 1.9e36)
    assert noise.instance_dependent(x, torch.arange(5).repeat(10), 0.5, K).changed.any()


def test_scores_in_parts_stay_small(samples, monkeypatch):
    shapes = []
    other_class = instance._other_class

    def spy(scores, y, rng):
        shapes.append(scores.shape)
        return other_class(scores, y, rng)

    monkeypatch.setattr(instance, "SCORES_AT_ONCE", 100 * K)
    monkeypatch.setattr(instance, "_other_class", spy)
    noisy = noise.instance_dependent(*samples, 0.4, K)
    assert max(rows for rows, _ in shapes) == 100
    assert sum(rows for rows, _ in shapes) == noisy.changed.sum()


def test_no_rate_changes_nothing(samples):
    assert not noise.instance_dependent(*samples, 0, K).changed.any()


def test_images_arrays_and_ignored_labels():
    images = np.random.default_rng(0).random((500, 3, 4), dtype=np.float32)[::-1]
    images.setflags(write=False)
    labels = np.random.default_rng(1).integers(0, 3, 500)
    labels[::5] = 255
    noisy = noise.instance_dependent(images, labels, 0.5, 3, ignore_index=255)
    assert (noisy.labels[::5] == 255).all()
    assert 0.4 < noisy.rate < 0.6
    flat = torch.from_numpy(images.copy()).flatten(1)
    same = noise.instance_dependent(flat, torch.from_numpy(labels), 0.5, 3, ignore_index=255)
    assert (same.labels.numpy() == noisy.labels).all()


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.rand(3, 2), [0, 1], r"features must have shape \(N, d\).*N = 2.*got \(3, 2\)"),
        (torch.rand(2), [0, 1], r"features must have shape .* got \(2,\)"),
        (torch.tensor([[1.0], [torch.nan]]), [0, 1], "features must be finite"),
        (torch.full((2, 2), 1e37), [0, 1], "features must be at most 5e\\+36 .* got 1e\\+37"),
        (
            torch.full((2, 2), -1e39, dtype=torch.float64),
            [0, 1],
            "features must be at most .* got 1e\\+39",
        ),
        (torch.rand(2, 2), [[0, 1]], r"labels must have shape \(N,\).*got \(1, 2\)"),
    ],
)
def test_errors(features, labels, message):
    with pytest.raises(ValueError, match=message):
        noise.instance_dependent(features, labels, 0.2, 3)
