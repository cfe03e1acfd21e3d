"""Labels of any kind come back as they were; wrong arguments are named."""

import numpy as np
import pytest
import torch

import anl_kernels as ak
from anl_kernels import noise

SOME = [0, 1, 2, 3] * 25


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64", "uint16", "uint64"])
def test_arrays_and_tensors_keep_their_dtype(dtype, device):
    array = noise.symmetric(np.array(SOME, dtype), 0.5, 4)
    tensor = noise.symmetric(torch.tensor(SOME, dtype=getattr(torch, dtype), device=device), 0.5, 4)
    assert array.labels.dtype == dtype
    assert array.changed.dtype == bool
    assert tensor.labels.dtype == getattr(torch, dtype)
    assert tensor.changed.dtype == torch.bool
    assert tensor.labels.device == tensor.changed.device == tensor.clean.device
    assert tensor.labels.tolist() == array.labels.tolist()
    assert array.changed.sum() == 50


def test_lists_give_arrays():
    noisy = noise.pair(SOME, 0.2, 4)
    assert isinstance(noisy.labels, np.ndarray)
    assert noisy.labels.dtype == np.int64
    assert noisy.changed.sum() == 20
    assert noise.pair([], 0.2, 4).labels.shape == (0,)
    assert noise.pair([], 0.2, 4).rate == 0


def test_masks_keep_their_shape_and_ignored_pixels():
    mask = torch.randint(5, (2, 6, 7), dtype=torch.uint8).transpose(1, 2)
    mask[:, 0] = 255
    noisy = noise.symmetric(mask, 0.5, 5, ignore_index=255)
    assert noisy.labels.shape == mask.shape
    assert torch.equal(noisy.changed, noisy.labels != mask)
    assert not noisy.changed[:, 0].any()
    assert noisy.changed.sum() == 36


@pytest.mark.parametrize("void", [0, 2, 4])
@pytest.mark.parametrize("rate", [0.5, 1])
def test_no_label_becomes_a_void_class(void, rate):
    mask = torch.arange(5).repeat(400)
    drawn = (
        noise.symmetric(mask, rate, 5, ignore_index=void),
        noise.instance_dependent(torch.randn(2000, 3), mask, rate, 5, ignore_index=void),
    )
    for noisy in drawn:
        assert torch.equal(noisy.labels == void, mask == void)
        assert torch.equal(noisy.changed, noisy.labels != mask)
        others = [i for i in range(5) if i != void]
        for i in others:
            got = noisy.labels[noisy.changed & (mask == i)].unique().tolist()
            assert got == [j for j in others if j != i]
    assert drawn[0].changed.sum() == rate * 1600


def test_flips_that_do_not_lead_to_the_void_class():
    mask = [0, 1, 2, 3] * 10
    noisy = noise.asymmetric(mask, 1, mapping={0: 1, 2: 1}, num_classes=4, ignore_index=0)
    assert noisy.labels.tolist() == [0, 1, 1, 3] * 10


def test_what_was_given_is_left_alone():
    array, tensor = np.array(SOME), torch.tensor(SOME)
    for labels in (array, tensor):
        noisy = noise.symmetric(labels, 0.9, 4)
        noisy.labels[:] = 0
        assert labels.tolist() == SOME
        assert noisy.clean is labels


def test_a_seed_decides():
    one, same, other = (noise.symmetric(SOME, 0.5, 4, seed=seed) for seed in (1, 1, 2))
    assert (one.labels == same.labels).all()
    assert (one.labels != other.labels).any()
    state = torch.get_rng_state()
    noise.symmetric(SOME, 0.5, 4)
    assert torch.equal(torch.get_rng_state(), state)


def test_defaults_of_pytorch_change_nothing():
    labels = torch.tensor(SOME)
    features = torch.randn(100, 3)

    def make():
        mixed = noise.asymmetric(labels, 0.5, mapping={0: 1}, num_classes=np.int64(4))
        drawn = noise.instance_dependent(features, labels, 0.5, 4)
        return [noise.symmetric(labels, 0.5, 4), noise.pair(labels, 0.5, 4), mixed, drawn]

    usual = make()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            changed = make()
            matrices = [noisy.transition_matrix() for noisy in changed]
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other, matrix in zip(usual, changed, matrices, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.transition_matrix(), matrix)


def test_the_transition_matrix_of_many_classes_is_sparse():
    labels = torch.arange(100_000)
    noisy = noise.pair(labels, 0.5, 100_000)
    with pytest.raises(ValueError, match=r"100000 classes has 80\.0 GB: pass sparse=True"):
        noisy.transition_matrix()
    matrix = noisy.transition_matrix(sparse=True)
    assert matrix.shape == (100_000, 100_000)
    assert torch.equal(matrix.indices()[0], labels)
    assert torch.equal(matrix.indices()[1], noisy.labels)
    assert torch.equal(matrix.values(), torch.ones(100_000, dtype=torch.float64))


def test_both_forms_of_the_matrix_agree():
    noisy = noise.symmetric([0, 0, 0, 2, 2, 4, -100], 0.6, 5)
    dense = noisy.transition_matrix()
    assert torch.equal(noisy.transition_matrix(sparse=True).to_dense(), dense)
    assert dense.sum(dim=1).tolist() == [1, 0, 1, 0, 1]


def test_the_module_is_the_packages():
    assert ak.noise is noise


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: noise.symmetric([0.5], 0.2, 4), TypeError, "labels must be integers, got float64"),
        (lambda: noise.symmetric([True], 0.2, 4), TypeError, "labels must be integers, got bool"),
        (
            lambda: noise.symmetric(torch.rand(3), 0.2, 4),
            TypeError,
            r"labels must be integers, got torch\.float32",
        ),
        (
            lambda: noise.symmetric(np.zeros(3, np.int8), 0.2, 1000),
            ValueError,
            "labels of int8 cannot hold 1000 classes",
        ),
        (
            lambda: noise.symmetric([0, 4], 0.2, 4),
            IndexError,
            r"label 1 of the labels is 4, outside \[0, 4\)",
        ),
        (lambda: noise.symmetric([-1], 0.2, 4), IndexError, "label 0 of the labels is -1"),
        (lambda: noise.symmetric(SOME, 1.2, 4), ValueError, r"rate must be .* got 1\.2"),
        (lambda: noise.symmetric(SOME, float("nan"), 4), ValueError, "rate must be .* got nan"),
        (
            lambda: noise.symmetric(SOME, "0.2", 4),
            TypeError,
            r"rate must be a number .* got '0\.2'",
        ),
        (lambda: noise.pair(SOME, None, 4), TypeError, "rate must be a number .* got None"),
        (lambda: noise.pair(SOME, np.ones(2), 4), TypeError, "rate must be a number"),
        (lambda: noise.symmetric(SOME, 0.2, 4, seed=2**63), ValueError, "seed must be in .* got 9"),
        (
            lambda: noise.symmetric(SOME, 0.2, 4, ignore_index=None),
            TypeError,
            "ignore_index must be an int, got None",
        ),
        (
            lambda: noise.symmetric([0, 1], 0.2, 2, ignore_index=0),
            ValueError,
            r"num_classes must be at least 3 where ignore_index \(0\)",
        ),
        (
            lambda: noise.pair(SOME, 0.2, 4, ignore_index=0),
            ValueError,
            r"ignore_index must not be a class .* got 0, to which \[3\] of \[0, 4",
        ),
        (
            lambda: noise.asymmetric(SOME, 0.2, "mnist", ignore_index=1),
            ValueError,
            r"ignore_index must not be .* got 1, to which \[7\]",
        ),
        (
            lambda: noise.asymmetric(SOME, 0.2, mapping={0: 1.5}, num_classes=4),
            TypeError,
            r"a class of mapping must be an int, got 1\.5",
        ),
        (
            lambda: noise.asymmetric(SOME, 0.2, mapping=[1, 0], num_classes=4),
            TypeError,
            r"mapping must give a noisy class by clean class.* got \[1, 0\]",
        ),
        (
            lambda: noise.symmetric([0], 0.2, 1),
            ValueError,
            "num_classes must be at least 2.* got 1",
        ),
        (
            lambda: noise.symmetric([0], 0.2, 4.0),
            TypeError,
            r"num_classes must be an int, got 4\.0",
        ),
        (lambda: noise.pair([0], 0.2, 0), ValueError, "num_classes must be at least 2"),
        (
            lambda: noise.pair(SOME, 0.2, 4, seed=torch.Generator()),
            TypeError,
            "seed must be an int",
        ),
        (
            lambda: noise.asymmetric(SOME, 0.2, "imagenet"),
            ValueError,
            "dataset must be one of mnist, cifar10, cifar100, got 'imagenet'",
        ),
        (lambda: noise.asymmetric(SOME, 0.2), ValueError, "pass either dataset .* or mapping"),
        (
            lambda: noise.asymmetric(SOME, 0.2, "mnist", mapping={0: 1}),
            ValueError,
            "pass either dataset .* or mapping",
        ),
        (
            lambda: noise.asymmetric(SOME, 0.2, "mnist", num_classes=4),
            ValueError,
            "num_classes of mnist is 10, got 4",
        ),
        (
            lambda: noise.asymmetric(SOME, 0.2, mapping={0: 1}),
            ValueError,
            "num_classes must be given",
        ),
        (
            lambda: noise.asymmetric(SOME, 0.2, mapping={0: 4}, num_classes=4),
            ValueError,
            r"mapping must lead from classes in \[0, 4\) to others of them, got 0 to 4",
        ),
        (
            lambda: noise.asymmetric(SOME, 0.2, mapping={2: 2}, num_classes=4),
            ValueError,
            "got 2 to 2",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
