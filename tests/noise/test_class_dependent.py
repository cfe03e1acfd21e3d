"""Symmetric, asymmetric and pair noise: which labels change, how many, and to what."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anl_kernels import noise

BALANCED = torch.arange(10).repeat(1000)


def changed_by_class(noisy, num_classes):
    return torch.bincount(noisy.clean[noisy.changed], minlength=num_classes)


@pytest.mark.parametrize("rate", [0, 0.2, 0.29, 0.4, 0.6, 0.8, 1])
def test_symmetric_noise_changes_an_exact_share_of_each_class(rate):
    noisy = noise.symmetric(BALANCED, rate, 10)
    assert changed_by_class(noisy, 10).tolist() == [round(1000 * rate)] * 10
    assert noisy.rate == pytest.approx(rate)


def test_symmetric_noise_is_uniform_over_the_other_classes():
    labels = torch.arange(5).repeat(18_000)
    matrix = noise.symmetric(labels, 0.8, 5, seed=3).transition_matrix()
    assert matrix.diagonal().tolist() == pytest.approx([0.2] * 5)
    off = matrix[~torch.eye(5, dtype=torch.bool)]
    # 14,400 draws for each row: five standard deviations of a share of a quarter, times 0.8
    assert (off - 0.2).abs().max() < 0.8 * 5 * (0.25 * 0.75 / 14_400) ** 0.5


def test_which_labels_change_is_uniform_over_the_rows():
    changed = sum(noise.symmetric(BALANCED[:100], 0.5, 10, seed=s).changed for s in range(400))
    assert (changed - 200).abs().max() < 5 * (400 * 0.25) ** 0.5


def test_classes_that_do_not_divide_get_the_nearest_counts():
    labels = torch.tensor([0] * 7 + [1] * 3 + [2] * 11 + [4])
    noisy = noise.symmetric(labels, 0.5, 5)
    changed = changed_by_class(noisy, 5)
    assert changed.sum() == 11
    wanted = 0.5 * torch.bincount(labels, minlength=5)
    assert ((changed >= wanted.floor()) & (changed <= wanted.ceil())).all()


def test_small_classes_get_their_share_together():
    labels = torch.arange(100_000).repeat(3)
    assert noise.symmetric(labels, 0.2, 100_000).changed.sum() == 60_000


@pytest.mark.parametrize(
    ("dataset", "flips"),
    [
        ("mnist", {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}),
        ("cifar10", {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}),
    ],
)
def test_asymmetric_noise_of_ten_classes(dataset, flips):
    noisy = noise.asymmetric(BALANCED, 0.3, dataset)
    matrix = torch.eye(10, dtype=torch.float64)
    for source, destination in flips.items():
        matrix[source, source], matrix[source, destination] = 0.7, 0.3
    torch.testing.assert_close(noisy.transition_matrix(), matrix)
    assert noisy.rate == pytest.approx(0.15)


def test_cifar100_flips_within_blocks_of_five():
    noisy = noise.asymmetric(np.repeat(np.arange(100), 10), 0.4, "cifar100")
    matrix = noisy.transition_matrix().fill_diagonal_(0)
    source, destination = matrix.nonzero().T
    assert torch.equal(source, torch.arange(100))
    assert torch.equal(source // 5, destination // 5)
    assert torch.equal((source + 1) % 5, destination % 5)
    assert noisy.rate == pytest.approx(0.4)


def test_pair_noise_goes_to_the_next_class():
    noisy = noise.pair(BALANCED, 0.45, 10)
    assert torch.equal(noisy.labels[noisy.changed], (noisy.clean[noisy.changed] + 1) % 10)
    assert changed_by_class(noisy, 10).tolist() == [450] * 10


def test_a_mapping_of_ones_own():
    noisy = noise.asymmetric([0, 1, 2, 3] * 4, 0.5, mapping={0: 3, 2: 1}, num_classes=4)
    assert noisy.transition_matrix().tolist() == [
        [0.5, 0, 0, 0.5],
        [0, 1, 0, 0],
        [0, 0.5, 0.5, 0],
        [0, 0, 0, 1],
    ]


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.sampled_from([-100, *range(6)]), max_size=60),
    rate=st.floats(0, 1),
    seed=st.integers(0, 2**40),
    model=st.sampled_from(["symmetric", "pair"]),
)
def test_what_holds_for_any_labels(labels, rate, seed, model):
    make = getattr(noise, model)
    given_labels = torch.tensor(labels, dtype=torch.int64)
    noisy = make(given_labels, rate, 6, seed=seed)
    counted = given_labels != -100
    assert torch.equal(noisy.labels[~counted], given_labels[~counted])
    assert torch.equal(noisy.changed, noisy.labels != given_labels)
    assert ((noisy.labels[counted] >= 0) & (noisy.labels[counted] < 6)).all()
    assert noisy.changed.sum() == round(rate * int(counted.sum()))
    size = torch.bincount(given_labels[counted], minlength=6)
    assert ((changed_by_class(noisy, 6) - rate * size).abs() < 1 + 1e-6).all()
    sums = noisy.transition_matrix().sum(dim=1)
    torch.testing.assert_close(sums, (size > 0).double())
    again = make(given_labels, rate, 6, seed=seed)
    assert torch.equal(again.labels, noisy.labels)
